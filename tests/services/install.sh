#!/usr/bin/env bash
# Debian's packages that `make test-services` needs. As root it installs what is missing; else it says what that is.
set -euo pipefail
missing=()
command -v redis-server >/dev/null || missing+=(redis-server)
command -v postgres >/dev/null || compgen -G '/usr/lib/postgresql/*/bin/postgres' >/dev/null || missing+=(postgresql)
command -v chromium >/dev/null || missing+=(chromium)
command -v faketime >/dev/null || missing+=(faketime)
command -v setpriv >/dev/null || missing+=(util-linux)
if [ ${#missing[@]} -eq 0 ]; then
  exit 0
fi
if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
  echo "make test-services needs ${missing[*]}: on Debian, as root, apt-get install --no-install-recommends ${missing[*]}" >&2
  exit 1
fi
# Nothing is to start by itself: the tests start their own servers.
printf '#!/bin/sh\nexit 101\n' >/usr/sbin/policy-rc.d.esper
chmod +x /usr/sbin/policy-rc.d.esper
[ -e /usr/sbin/policy-rc.d ] || { mv /usr/sbin/policy-rc.d.esper /usr/sbin/policy-rc.d; made=1; }
trap 'rm -f /usr/sbin/policy-rc.d.esper; [ -z "${made:-}" ] || rm -f /usr/sbin/policy-rc.d' EXIT
apt-get update -qq
DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "${missing[@]}"
