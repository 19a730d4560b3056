#!/usr/bin/env bash
# Set up the environment of this checkout: libraries, detectron2, the project itself (editable).
#
#     [PYTHON=python3.12] tools/setup.sh [FOLDER]        # FOLDER: .venv
#
# Can be interrupted and run again. `make setup` calls it after changes of the requirements.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${1:-.venv}
py=$venv/bin/python
log=$venv/setup.log
export PIP_USER=0 PIP_NO_INPUT=1 PIP_DISABLE_PIP_VERSION_CHECK=1
unset PIP_TARGET PIP_PREFIX PIP_REQUIRE_VIRTUALENV

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null
}

find_python() { # the first one that is new enough; only PYTHON if it is set
    local candidate
    for candidate in ${PYTHON:-python3 python3.13 python3.12 python3.11 python3.14 python}; do
        if new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    candidate=${PYTHON:-python3}
    fail "V2I-DETR needs Python 3.11 or newer." \
        "$candidate: $("$candidate" --version 2>/dev/null || echo "not found")" \
        "Choose another one: make setup PYTHON=/path/to/python3.12"
}

make_environment() { # keeps a working one, adds pip if missing, replaces a broken one
    local python
    if ! "$py" -c '' 2>/dev/null; then
        python=$(find_python)
        "$python" -c 'import ensurepip, venv' 2>/dev/null ||
            fail "$python comes without venv; on Debian and Ubuntu: apt-get install python3-venv"
        "$python" -m venv --clear "$venv"
    fi
    new_enough "$py" ||
        fail "$venv holds $("$py" --version), and 3.11 or newer is needed: make distclean, then again"
    "$py" -m pip --version >/dev/null 2>&1 || "$py" -m ensurepip --upgrade >/dev/null
}

enough_disk() { # a full disk would stop pip halfway
    local place=. used=0 free
    if [ -d "$venv" ]; then
        place=$venv
        used=$(du -sk "$venv/." 2>/dev/null | cut -f 1 || true) # 1 where a file vanishes
    fi
    free=$(df -Pk "$place" | awk 'NR == 2 { print $4 }')
    ((used + free >= 7 * 1024 * 1024)) ||
        fail "The libraries need 7 GB of disk, but $(cd "$place" && pwd) has only" \
            "$((free / 1024)) MB free. Free some space, or clone the project to another disk."
}

install() { # pip with its output in the log; shows downloads of 10 MB and more
    if ! "$py" -m pip install "$@" 2>&1 | tee -a "$log" |
        awk '/^ *Downloading .*\([0-9][0-9]+\.[0-9] MB\)/ { print "      " $2, $3, $4 }
            /^Installing collected/ && NF > 9 { print "      unpacking", NF - 3, "packages" }
            { fflush() }'; then
        tail -n 15 "$log" >&2
        fail "" "pip failed. Its full output is in $log; \`make setup\` continues from here."
    fi
}

echo "[1/4] Environment in $venv"
enough_disk
make_environment
: >"$log"
echo "[2/4] Libraries (first time: some minutes, 6 GB of disk)"
install -r requirements.txt -r requirements-dev.txt -r requirements-deploy.txt \
  -r requirements-pretraining.txt -r requirements-app.txt -r requirements-docs.txt
echo "[3/4] detectron2"
"$py" tools/install_detectron2.py
echo "[4/4] This project, editable"
install --no-deps --editable .
