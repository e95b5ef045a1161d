#!/usr/bin/env bash
# Prints an interpreter of a Python version, such as 3.10: one on the path, or one of pyenv's.
# Without one it prints the reason on standard error and ends with exit code 1.
set -euo pipefail
version=$1
candidates=("python$version" "${PYENV_ROOT:-$HOME/.pyenv}"/versions/"$version".*/bin/python)
for python in "${candidates[@]}"; do
    # a shim of pyenv is on the path for versions that are not chosen, too, and fails
    if "$python" -c "import sys; sys.exit('%d.%d' % sys.version_info[:2] != '$version')" 2>/dev/null; then
        command -v "$python"
        exit 0
    fi
done
echo "no Python $version: install it, or put it on the path" >&2
exit 1
