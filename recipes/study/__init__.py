"""Programs to study the network: its activations and its gradients."""
