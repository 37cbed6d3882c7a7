#!/bin/sh
# The bucket, and a user that may use it and nothing else. Safe to run again.
set -eu
mkdir -p "$MC_CONFIG_DIR/certs/CAs"
cp /keys/ca.pem "$MC_CONFIG_DIR/certs/CAs/"
# Nothing secret stands on a command line, which every process can read. In a URL, so letters and digits.
MC_HOST_store="https://$(cat /keys/minio_root_user):$(cat /keys/minio_root_password)@minio:9000"
export MC_HOST_store
until mc mb --ignore-existing store/esper-artifacts; do # until it is up, and has the password of now
  sleep 1
done
mc admin policy create store esper /etc/esper/policy.json
printf '%s\n%s\n' "$(cat /keys/storage_access_key)" "$(cat /keys/storage_secret_key)" | mc admin user add store >/dev/null
mc admin policy attach store esper --user "$(cat /keys/storage_access_key)" || true
