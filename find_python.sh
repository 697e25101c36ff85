#!/bin/sh
# Print the first of the given Python commands that can run the project; say why none can where there is none.
#
#     sh find_python.sh python3.12 python3.11 python3.10 python3
check='
import sys
if not (3, 10) <= sys.version_info[:2] <= (3, 12):
    sys.exit("is %d.%d" % sys.version_info[:2])  # a Python 2 must be able to say so
import ctypes, os, ssl, sysconfig
import ensurepip, venv  # Debian has them in the package python3-venv
library = sysconfig.get_config_var("INSTSONAME") or ""
folders = [sysconfig.get_config_var("LIBDIR") or "", os.path.join(sys.base_prefix, "lib")]
if not library.endswith(".a") and not any(os.path.isfile(os.path.join(folder, library)) for folder in folders):
    ctypes.CDLL(library)  # Triton runs its Python backend with it
if library.endswith(".a"):
    sys.exit("has no shared libpython, which Triton needs")
'
reasons=
for python in "$@"; do
    if reason=$(LC_ALL=C "$python" -c "$check" 2>&1); then
        echo "$python"
        exit
    fi
    case $reason in
        Traceback*) reason=$(echo "$reason" | tail -n 1) ;;
        *) reason=$(echo "$reason" | head -n 1) ;;
    esac
    reasons="$reasons  $python: $reason
"
done
cat >&2 <<END
No Python here can run this project:
$reasons
It needs Python 3.10, 3.11 or 3.12 (nvidia-pytriton serves from no other) with venv and a shared libpython:
  Debian 12      apt install python3-venv libpython3.11
  Ubuntu 22.04   apt install python3-venv libpython3.10
  Ubuntu 24.04   apt install python3-venv libpython3.12
  Fedora         dnf install python3.12
  elsewhere      uv python install 3.12, then make PYTHON="\$(uv python find 3.12)"
Or name one that you have: make PYTHON=/path/to/python3.11
END
exit 1
