#!/bin/sh
# The bucket, and a user that may use it and nothing else. Safe to run again.
set -eu
mkdir -p "$MC_CONFIG_DIR/certs/CAs"
cp /keys/ca.pem "$MC_CONFIG_DIR/certs/CAs/"
until mc alias set store https://minio:9000 "$(cat /keys/minio_root_user)" "$(cat /keys/minio_root_password)" >/dev/null
do
  sleep 1
done
mc mb --ignore-existing store/esper-artifacts
mc admin policy create store esper /etc/esper/policy.json
mc admin user add store "$(cat /keys/storage_access_key)" "$(cat /keys/storage_secret_key)" >/dev/null
mc admin policy attach store esper --user "$(cat /keys/storage_access_key)" || true
