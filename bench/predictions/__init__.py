"""What larger models on GPUs would gain, by simulation: tables and plots."""
