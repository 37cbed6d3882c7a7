#!/bin/sh
# The database of the catalogue, owned by a role that may do nothing else. Run once, by the image, as the admin.
# psql reads the password from its file itself, so that no list of processes shows it.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres <<'SQL'
\set password `cat /keys/database_password`
CREATE ROLE urza LOGIN NOSUPERUSER NOCREATEDB NOCREATEROLE CONNECTION LIMIT 50 PASSWORD :'password';
CREATE DATABASE urza_db OWNER urza;
REVOKE ALL ON DATABASE urza_db FROM PUBLIC;
SQL
