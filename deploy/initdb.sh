#!/bin/sh
# Run once by the PostgreSQL image on an empty data folder: the owner of the tables, who is no
# superuser, and its database. Roles and tables are made by `passerelle migrate`.
set -eu
psql --set ON_ERROR_STOP=1 --username "$POSTGRES_USER" --dbname postgres \
    --set password="$(cat /run/secrets/owner_password)" <<'SQL'
create role passerelle_owner login createrole nosuperuser password :'password';
create database passerelle owner passerelle_owner;
revoke all on database passerelle from public;
SQL
