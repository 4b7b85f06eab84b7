#!/bin/sh
# What an init system would do on a node: run its daemons and start them again when they end.
keep() {
    name=$1
    shift
    while :; do
        "$@" >>"/var/log/$name.log" 2>&1
        echo "kubebed: $name ended with exit code $?" >>"/var/log/$name.log"
        sleep 1
    done
}
keep containerd containerd &
# Written when the images of every pod are there: this kubelet would try to pull them, and wait longer each time.
until [ -e /run/kubebed/images ]; do sleep 0.1; done
keep kubelet kubelet --config=/etc/kubernetes/kubelet.yaml --kubeconfig=/etc/kubernetes/kubelet.kubeconfig \
    --node-ip="$(cat /etc/kubernetes/address)" --network-plugin=cni --container-runtime=remote \
    --container-runtime-endpoint=unix:///run/containerd/containerd.sock \
    --pod-infra-container-image=localhost/pause:3 --v=2 &
keep kube-proxy kube-proxy --config=/etc/kubernetes/kube-proxy.yaml --v=2 &
wait
