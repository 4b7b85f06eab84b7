# The front end. nginx looks its upstream up at the start; TMPDIR is the pod's own.
exec nginx -p "$TMPDIR" -c "$PWD/nginx.conf" -e stderr -g 'daemon off;'
