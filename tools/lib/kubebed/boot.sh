#!/bin/sh
# The first process of a node, in namespaces of its own: makes its file systems and becomes its init.
#
#   boot.sh DISK LOWER NAME HIERARCHY...
#
# DISK is what the node writes to, LOWER the overlay layers below it, HIERARCHY a cgroup v1 hierarchy's mount options.
set -eu
disk=$1 lower=$2 name=$3
shift 3
root=$disk/root
mount --make-rprivate /
mount -t overlay overlay -o "lowerdir=$lower,upperdir=$disk/upper,workdir=$disk/work" "$root"
# Not in the overlay: containerd's snapshots are overlays, whose upper layer can't be in one.
mkdir -p "$root/var/lib/containerd" "$root/var/lib/kubelet"
mount --bind "$disk/containerd" "$root/var/lib/containerd"
mount --bind "$disk/kubelet" "$root/var/lib/kubelet"

mount -t proc proc "$root/proc"
mount -t sysfs sysfs "$root/sys"
mount -t tmpfs -o mode=755 cgroups "$root/sys/fs/cgroup"
for hierarchy; do
    folder=$root/sys/fs/cgroup/${hierarchy#name=}
    mkdir "$folder"
    case $hierarchy in
        name=*) mount -t cgroup -o "none,$hierarchy" cgroup "$folder" ;;
        *) mount -t cgroup -o "$hierarchy" cgroup "$folder" ;;
    esac
    case $hierarchy in *,*)
        for controller in $(echo "$hierarchy" | tr , ' '); do ln -s "$hierarchy" "$root/sys/fs/cgroup/$controller"; done
    esac
done

mount -t tmpfs -o mode=755 dev "$root/dev"
cd "$root/dev"
for device in null:1:3 zero:1:5 full:1:7 random:1:8 urandom:1:9 tty:5:0; do
    IFS=: read -r file major minor <<END
$device
END
    mknod -m 666 "$file" c "$major" "$minor"
done
mknod -m 600 kmsg c 1 11
mkdir pts shm mqueue net
mknod -m 600 net/tun c 10 200
mount -t devpts -o newinstance,ptmxmode=0666,mode=620,gid=5 devpts pts
mount -t tmpfs -o mode=1777 shm shm
mount -t mqueue mqueue mqueue
ln -s pts/ptmx ptmx
ln -s /proc/self/fd fd
ln -s fd/0 stdin
ln -s fd/1 stdout
ln -s fd/2 stderr

mount -t tmpfs -o mode=755 run "$root/run"
mkdir "$root/run/lock" "$root/run/netns" "$root/run/kubebed"
# The kubelet sets these, which are the whole machine's. It gets files to write to.
for sysctl in vm/overcommit_memory=1 vm/panic_on_oom=0 kernel/panic=10 kernel/panic_on_oops=1 \
    kernel/keys/root_maxkeys=1000000 kernel/keys/root_maxbytes=25000000; do
    file=$root/run/kubebed/$(echo "${sysctl%=*}" | tr / .)
    echo "${sysctl#*=}" >"$file"
    mount --bind "$file" "$root/proc/sys/${sysctl%=*}"
done
echo "$name" >"$root/proc/sys/kernel/hostname"

cd "$root"
mkdir -p old
pivot_root . old
cd /
umount -l /old
rmdir /old
mount --make-rshared /
exec env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root \
    catatonit -- sh /etc/kubebed/services
