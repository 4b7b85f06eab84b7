"""The CNI plug-in: a shell script for the host (`plugin.sh`), and its place in the runtime's chain (`install`)."""
