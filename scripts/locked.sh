#!/bin/sh
# Print the entry of one package, with its hashes: locked.sh LOCK PACKAGE
sed -n "/^$2==/,/[^\\\\]\$/p" "$(dirname "$0")/../requirements/$1.lock"
