# The database: MariaDB, whose protocol the server opens with a greeting before the client has said a word.
set -eu
data=$TMPDIR/data
small="--innodb-log-file-size=4M --innodb-buffer-pool-size=8M --aria-pagecache-buffer-size=1M --key-buffer-size=1M"
# shellcheck disable=SC2086
mariadb-install-db --no-defaults $small --user=root --datadir="$data" --skip-test-db \
    --auth-root-authentication-method=normal >"$TMPDIR/install.log" || { cat "$TMPDIR/install.log"; exit 1; }
cat >"$TMPDIR/init.sql" <<'SQL'
CREATE DATABASE IF NOT EXISTS shop;
CREATE TABLE IF NOT EXISTS shop.stock (item VARCHAR(40) PRIMARY KEY, pieces INT);
REPLACE INTO shop.stock VALUES ('umbrella', 17);
CREATE USER IF NOT EXISTS api IDENTIFIED BY 'shop';
GRANT SELECT ON shop.* TO api;
SQL
# shellcheck disable=SC2086
exec mariadbd --no-defaults $small --user=root --datadir="$data" --socket="$TMPDIR/mariadb.sock" \
    --pid-file="$TMPDIR/mariadb.pid" --init-file="$TMPDIR/init.sql" --skip-name-resolve --performance-schema=off
