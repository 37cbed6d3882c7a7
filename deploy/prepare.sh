#!/bin/sh
# Gives each service the secrets it needs, and only those, as files of its own account; and the folders it writes to.
set -eu
give() { # account, folder, files
  account=$1 folder=$2
  shift 2
  for name in "$@"; do
    cp "/secrets/$name" "$folder/$name"
    chmod 400 "$folder/$name"
    chown "$account" "$folder/$name"
  done
  chown "$account" "$folder"
  chmod 500 "$folder"
}
give 999:999 /keys/postgres ca.pem postgres.pem postgres.key postgres_admin_password database_password
give 999:999 /keys/redis ca.pem redis.pem redis.key users.acl
give 1000:1000 /keys/setup ca.pem minio_root_user minio_root_password storage_access_key storage_secret_key
give 1000:1000 /keys/esper ca.pem database_password redis_password storage_access_key storage_secret_key
# MinIO's own names for its certificate; it makes the folder CAs, or does not start where it cannot.
give 1000:1000 /keys/minio ca.pem minio.pem minio.key minio_root_user minio_root_password
mv /keys/minio/minio.pem /keys/minio/public.crt
mv /keys/minio/minio.key /keys/minio/private.key
mkdir -p /keys/minio/CAs
mv /keys/minio/ca.pem /keys/minio/CAs/ca.pem
chown 1000:1000 /keys/minio/CAs
chmod 500 /keys/minio/CAs
chown 999:999 /data/postgres /data/redis
chown 1000:1000 /data/minio /data/runs
