"""The control process: talks to the controller, enrols workloads, keeps certificates, supervises the workers."""
