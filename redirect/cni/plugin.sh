#!/bin/sh
# nodemesh-cni: the chained CNI plug-in (specification 0.3.0 to 1.1.0) that lets a pod start only when noded captures it.
#
# Needs a POSIX shell, awk, cat, mv, rm, sed and sleep; noded puts it on the host. ADD hands the request to noded through
# a folder, waits for its answer, and prints the result of the plug-in before. Where noded is away, pods of a namespace
# that is in the mesh don't start (error 11: try again later), and others do. DEL tells noded, and never fails.
set -u
umask 077
LC_ALL=C
PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin
export LC_ALL PATH
requests=@requests@
ready=@ready@
namespaces=@namespaces@
version=1.0.0

fail() { # code message details; none of them holds a quote or backslash
    printf '{"cniVersion":"%s","code":%d,"msg":"%s","details":"%s"}\n' "$version" "$1" "$2" "$3"
    exit 1
}

arg() { # the value of one pair of CNI_ARGS
    rest=";${CNI_ARGS:-};"
    case $rest in *";$1="*) rest=${rest#*";$1="} && printf '%s' "${rest%%;*}" ;; esac
}

field() { # the value of one key of the configuration: an object as it is, or a string without its quotes
    printf '%s\n' "$config" | awk -v want="$1" '
        { text = text $0 "\n" }
        END {
            n = length(text)
            for (i = 1; i <= n; i++) {
                c = substr(text, i, 1)
                if (string) {
                    if (escaped) escaped = 0
                    else if (c == "\\") escaped = 1
                    else if (c == "\"") {
                        string = 0
                        last = substr(text, from, i - from)
                        if (value && depth == 1) { print last; exit }
                    }
                }
                else if (c == "\"") { string = 1; from = i + 1 }
                else if (c == "{" || c == "[") {
                    depth++
                    if (value && depth == 2 && c == "{") start = i
                }
                else if (c == "}" || c == "]") {
                    depth--
                    if (start && depth == 1) { print substr(text, start, i - start + 1); exit }
                }
                else if (c == ":" && depth == 1) value = last == want
                else if (c == "," && depth == 1) value = 0
            }
        }'
}

nap() { sleep 0.1 2>/dev/null || sleep 1; }

ask() { # hands the request to noded; false if it could not be written
    {
        printf 'command=%s\nnetns=%s\ninterface=%s\n' "$CNI_COMMAND" "${CNI_NETNS:-}" "${CNI_IFNAME:-}"
        printf 'namespace=%s\nname=%s\nuid=%s\n\n' "$namespace" "$(arg K8S_POD_NAME)" "$(arg K8S_POD_UID)"
        printf '%s\n' "$config"
    } 2>/dev/null >"$file.new" && mv "$file.new" "$file.request" 2>/dev/null
}

pass() {
    printf '%s\n' "$result"
    exit 0
}

away() {
    [ -e "$namespaces/$namespace" ] || pass
    fail 11 "noded does not run on this node, and pods of namespace $namespace do not start without it" \
        "kubectl -n nodemesh-system get pods -o wide"
}

case ${CNI_COMMAND:-} in
    ADD | DEL) config=$(cat) ;;
    CHECK | GC | STATUS) exit 0 ;;
    VERSION)
        printf '{"cniVersion":"1.0.0","supportedVersions":["0.3.0","0.3.1","0.4.0","1.0.0","1.1.0"]}\n'
        exit 0
        ;;
    *) fail 4 "CNI_COMMAND is none of ADD, DEL, CHECK, VERSION" "" ;;
esac

namespace=$(arg K8S_POD_NAMESPACE)
file=$requests/${CNI_CONTAINERID:-none}.$$
if [ "$CNI_COMMAND" = DEL ]; then
    case ${CNI_CONTAINERID:-/} in */*) ;; *) [ ! -e "$ready" ] || ask ;; esac
    exit 0
fi

given=$(field cniVersion)
case $given in '' | *[!0-9.]*) ;; *) version=$given ;; esac
result=$(field prevResult)
case $result in "{"*) ;; *) fail 7 "there is no prevResult: nodemesh-cni must come after another plug-in" "" ;; esac
case ${CNI_CONTAINERID:-/} in */*) fail 4 "CNI_CONTAINERID is missing or no name" "" ;; esac
case $namespace in
    '' | kube-system | nodemesh-system) pass ;; # never wait for the mesh: the mesh may need them
    *[!a-z0-9-]*) fail 4 "K8S_POD_NAMESPACE is no namespace" "" ;;
esac

[ -e "$ready" ] && ask || away
naps=0
while [ -e "$file.request" ]; do # noded renames what it takes up
    if [ $naps -ge 50 ] && rm "$file.request" 2>/dev/null; then away; fi
    nap
    naps=$((naps + 1))
done
while [ ! -e "$file.answer" ]; do
    if [ $naps -ge 1000 ] || { [ ! -e "$file.taken" ] && [ ! -e "$file.answer" ]; }; then
        fail 11 "noded has not answered" "kubectl -n nodemesh-system logs -l app=noded"
    fi
    nap
    naps=$((naps + 1))
done
read -r status <"$file.answer"
[ "$status" != 0 ] || { rm -f "$file.answer"; pass; }
sed 1d "$file.answer"
rm -f "$file.answer"
exit 1
