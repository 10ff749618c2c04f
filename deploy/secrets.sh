#!/bin/sh
# Makes the secrets of one installation: secrets.sh FOLDER [DATABASE_HOST]
#
# FOLDER/<part>/passerelle_<setting> is a file of the name of the setting, one folder for each
# part, so that none is given what it does not need. Files that exist are kept: run it again
# after an upgrade that needs a new secret. Guard FOLDER like the data itself; whoever loses the
# token keys must report an incident (CS-94).
set -eu
umask 077

folder=${1:?usage: secrets.sh FOLDER [DATABASE_HOST]}
host=${2:-postgres}
mkdir -p "$folder"
cd "$folder"

random() { # bytes, as base64
    openssl rand -base64 "$1" | tr -d '\n'
}

password() { # without characters that a URL would need escaped
    openssl rand -hex 24
}

keep() { # file, value: written unless it is there
    if [ ! -s "$1" ]; then
        mkdir -p "$(dirname "$1")"
        printf '%s' "$2" >"$1"
    fi
}

keyring() {
    printf '{"active": "k1", "keys": {"k1": "%s"}}' "$(random 32)"
}

share() { # from, to: the same secret for another part
    keep "$2" "$(cat "$1")"
}

keep postgres/superuser_password "$(password)"
keep postgres/owner_password "$(password)"
for service in ingest screening notify; do
    keep "postgres/${service}_password" "$(password)"
    keep "$service/passerelle_database_url" \
        "postgresql://passerelle_$service:$(cat "postgres/${service}_password")@$host:5432/passerelle"
done
keep migrate/passerelle_owner_database_url \
    "postgresql://passerelle_owner:$(cat postgres/owner_password)@$host:5432/passerelle"
keep migrate/passerelle_role_passwords \
    "$(printf '{"ingest": "%s", "screening": "%s", "notify": "%s"}' \
        "$(cat postgres/ingest_password)" "$(cat postgres/screening_password)" \
        "$(cat postgres/notify_password)")"

keep ingest/passerelle_token_keys "$(keyring)"
keep ingest/passerelle_seal_keys "$(keyring)"
keep ingest/passerelle_date_keys "$(keyring)"
share ingest/passerelle_token_keys notify/passerelle_token_keys
share ingest/passerelle_seal_keys notify/passerelle_seal_keys
share ingest/passerelle_date_keys notify/passerelle_date_keys
share ingest/passerelle_date_keys screening/passerelle_date_keys
keep screening/passerelle_cursor_key "$(random 32)"
keep notify/passerelle_cursor_key "$(random 32)"
keep ingest/passerelle_checkpoint_key "$(random 32)"
share ingest/passerelle_checkpoint_key screening/passerelle_checkpoint_key
share ingest/passerelle_checkpoint_key notify/passerelle_checkpoint_key

# Containers run as another user: they are given one folder each, readable, and not its parent.
chmod 700 .
find . -mindepth 1 -type d -exec chmod 755 {} +
find . -type f -exec chmod 444 {} +

if [ ! -s notify/passerelle_oidc_client_secret ]; then
    echo "Still to do: put the secret of the OIDC client into" \
        "$folder/notify/passerelle_oidc_client_secret (readable by all within that folder)." >&2
fi
