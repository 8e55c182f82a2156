# Sourced by the other scripts: .venv with this package installed, made anew only when setup.py has changed.
# PYTHON chooses the interpreter (3.11 or newer).
PYTHON="${PYTHON:-python3}"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $("$PYTHON" --version) is too old; set PYTHON to a Python 3.11 or newer" >&2
  exit 1
}
wanted="$("$PYTHON" --version) $(cksum < setup.py)"
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  "$PYTHON" -m venv .venv
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[test,report]"
  echo "$wanted" > .venv/installed
fi
