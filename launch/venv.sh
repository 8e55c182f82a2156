# shellcheck shell=bash
# Sourced by the other scripts: creates .venv with this package installed, again only if setup.py or the extras have changed.
# Environment: PYTHON, the interpreter (3.11 or newer); IGPO_EXTRAS, the extras (test,report).
PYTHON="${PYTHON:-python3}"
"$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
  echo "error: $("$PYTHON" --version) is too old; set PYTHON to a Python 3.11 or newer" >&2
  exit 1
}
extras="${IGPO_EXTRAS:-test,report}"
wanted="$("$PYTHON" --version) $(cksum < setup.py) $extras"
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
  echo "installing igpo_jax[$extras] into .venv" >&2
  if ! { "$PYTHON" -m venv .venv &&
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --editable ".[$extras]"; }; then
    echo "error: installing igpo_jax[$extras] into .venv has failed" >&2
    exit 1
  fi
  echo "$wanted" > .venv/installed
fi
