#!/usr/bin/env bash
# Makes the secrets of a deployment in a folder: an authority, certificates of the three servers, random passwords.
# What is there already is kept, so it can be run again. Nothing of it belongs into version control.
set -euo pipefail
umask 077
folder=${1:?usage: deploy/secrets.sh FOLDER}
mkdir -p "$folder"
cd "$folder"

# The authority's key may be kept elsewhere; without it nothing can be signed, and nothing is begun.
if [ -s ca.pem ] && [ ! -s ca.key ]; then
  for name in postgres redis minio; do
    [ -s "$name.pem" ] && continue
    echo "$folder: $name.pem is to be signed and ca.key is not there: bring ca.key back, and run this again" >&2
    exit 1
  done
fi

password() { [ -s "$1" ] || openssl rand -hex 24 | tr -d '\n' >"$1"; }
for name in postgres_admin_password database_password redis_password minio_root_password storage_secret_key; do
  password "$name"
done
[ -s minio_root_user ] || printf 'root-%s' "$(openssl rand -hex 4)" >minio_root_user
[ -s storage_access_key ] || printf 'esper-%s' "$(openssl rand -hex 4)" >storage_access_key

if [ ! -s ca.pem ]; then
  openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj '/CN=esper authority' \
    -addext 'basicConstraints=critical,CA:TRUE' -addext 'keyUsage=critical,keyCertSign,cRLSign' \
    -keyout ca.key -out ca.pem 2>/dev/null
fi
for name in postgres redis minio; do
  [ -s "$name.pem" ] && continue
  openssl req -new -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$name" \
    -keyout "$name.key" -out "$name.csr" 2>/dev/null
  printf 'subjectAltName=DNS:%s,DNS:%s.esper.svc,DNS:localhost,IP:127.0.0.1\nbasicConstraints=critical,CA:FALSE\n' \
    "$name" "$name" >"$name.ext"
  openssl x509 -req -in "$name.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 397 -extfile "$name.ext" \
    -out "$name.pem" 2>/dev/null
  rm "$name.csr" "$name.ext"
done

# Redis keeps hashes only. `health` may say PING and nothing else.
hash=$(printf '%s' "$(cat redis_password)" | openssl dgst -sha256 -r | cut -d' ' -f1)
{
  echo 'user default off'
  echo 'user health on nopass resetkeys resetchannels -@all +ping'
  echo "user esper on #$hash resetkeys ~esper:* resetchannels -@all" \
    "+@connection +@stream +@sortedset +@transaction +@keyspace +eval +time -@dangerous +info"
} >users.acl
