# shellcheck shell=bash
# Sourced by the scripts beside it. Takes $root (the clone) and $extra (one of the package's extras, or nothing); leaves
# $python, an interpreter in which the clone and what it needs are installed: the first with a torch new enough among
# $PYTHON, the active environment, .venv and python3, else that of a .venv made here. A torch found is never replaced.

venv="${root:?}/.venv"
unfinished="unfinished-i2c-fast" # lies in .venv, with the installing process's id, until its first installation ends

say() { printf '%s\n' "$1" >&2; }

die() {
    say "${0##*/}: $1"
    exit 2
}

# Sets $torch (version or nothing), $python (absolute path), $base (the Python that $python's environment was made from)
# and $site (the folder of its packages). Fails below Python 3.11, which does not know -P. Reads torch's metadata only:
# importing it takes seconds.
probe() {
    local facts
    facts="$("$1" -P -c '
import os, sys, sysconfig
from importlib.metadata import PackageNotFoundError, version
try:
    torch = "" if os.path.exists(os.path.join(sys.prefix, sys.argv[1])) else version("torch")
except PackageNotFoundError:
    torch = ""
print(torch, sys.executable, sys._base_executable, sysconfig.get_path("purelib"), sep="\n")
' "$unfinished" 2>/dev/null)" || return 1
    { IFS= read -r torch && IFS= read -r python && IFS= read -r base && IFS= read -r site; } <<<"$facts"
}

new_enough() {
    [[ $1 =~ ^([0-9]+)\.([0-9]+) ]] && ((BASH_REMATCH[1] * 1000 + BASH_REMATCH[2] >= 2011))
}

# Probes the candidates up to the first whose torch is new enough; without one, leaves a working Python in .venv.
choose_python() {
    local candidate first_base="" too_old=""
    local candidates=("${VIRTUAL_ENV:+$VIRTUAL_ENV/bin/python}" "${CONDA_PREFIX:+$CONDA_PREFIX/bin/python}"
        "$venv/bin/python" python3 python3.13 python3.12 python3.11)
    if [ -n "${PYTHON:-}" ]; then
        probe "$PYTHON" || die "PYTHON=$PYTHON is no Python 3.11 or newer: name another, or unset PYTHON"
        candidates=("$PYTHON" "$venv/bin/python")
    fi
    for candidate in "${candidates[@]}"; do
        probe "$candidate" || continue
        if new_enough "$torch"; then return; fi
        first_base="${first_base:-$base}"
        too_old="${too_old:-${torch:+torch $torch of $python is older than 2.11 and stays as it is; using .venv}}"
    done
    [ -n "$first_base" ] || die "found no Python 3.11 or newer: install one, or name it, PYTHON=/path/to/python $0"
    if [ -n "$too_old" ]; then say "$too_old"; fi
    if [ -e "$venv/$unfinished" ] || ! probe "$venv/bin/python"; then make_venv "$first_base"; fi
}

make_venv() {
    local process=""
    if [ -e "$venv/$unfinished" ]; then
        process="$(<"$venv/$unfinished")"
        if [ -n "$process" ] && kill -0 "$process" 2>/dev/null; then
            die "process $process is still installing into .venv: run this again when it is done"
        fi
        say "The first installation into .venv did not finish: starting it over"
    elif "$venv/bin/python" -c "" 2>/dev/null; then
        die "the Python in $venv is older than 3.11: move .venv away and run this again"
    elif [ -e "$venv" ]; then
        say "The Python in .venv does not start: making .venv anew"
    fi
    "$1" -c "import ensurepip, venv" 2>/dev/null ||
        die "$1 lacks ensurepip: install it (Debian, Ubuntu: apt-get install $("$1" -c '
import sys
print("python%d.%d-venv" % sys.version_info[:2])')) or name another Python, PYTHON=/path/to/python $0"
    rm -rf "$venv"
    mkdir "$venv"
    echo $$ >"$venv/$unfinished"
    "$1" -m venv "$venv" || die "could not make $venv"
    probe "$venv/bin/python"
}

has_gpu() { [[ "$(nvidia-smi -L 2>/dev/null)" == GPU* ]]; }

# The tested versions belong together: they hold in .venv, beside the torch that they were tested with, without a GPU.
install() {
    local own="" log options=(--editable "$root${extra:+[$extra]}" ${torch:+"torch==$torch"})
    if [[ $site == "$venv"/* ]]; then own=yes; fi
    if [ -z "$own" ]; then
        say "Installing what is missing into $site (torch $torch stays) ..."
    else
        say "Installing into .venv (the first time takes a few minutes, most of them for torch) ..."
        if ! has_gpu && { [ -z "$torch" ] || grep -qx "torch==${torch%%+*}" "$root/constraints.txt"; }; then
            options+=(--constraint "$root/constraints.txt")
        fi
    fi
    rm -f "$site/i2c-fast.stamp"
    "$python" -m pip --version >/dev/null 2>&1 || "$python" -m ensurepip >/dev/null 2>&1 ||
        die "$python has no pip: install it there, or deactivate that environment"
    log="$(mktemp)"
    # What pip downloads, with sizes, and builds, as it happens; all it said if it fails.
    if ! "$python" -m pip install --no-input --disable-pip-version-check --progress-bar off "${options[@]}" 2>&1 |
        tee "$log" | { grep --line-buffered -E '^ *(Downloading|Using cached|Building|Installing|Preparing)' || true; } >&2
    then
        say "$(<"$log")"
        rm -f "$log"
        die "pip could not install what i2c-fast needs into $site; its own words are above"
    fi
    rm -f "$log"
    if [ -n "$own" ]; then rm -f "$venv/$unfinished"; fi
    probe "$python"
}

# What the environment was made for, by the extra installed; the one for `dev` serves all.
stamp() {
    printf '%s\n' "$1" "$root" "$torch"
    cat "$root/pyproject.toml" "$root/setup.py" "$root/constraints.txt" | cksum
}

stamped() { [[ -e $site/i2c-fast.stamp && $(<"$site/i2c-fast.stamp") == "$(stamp "$1")" ]]; }

choose_python
if ! stamped "$extra" && ! stamped dev; then
    install
    stamp "$extra" >"$site/i2c-fast.stamp" || say "$site is not writable: every start will ask pip again"
fi
