"""The gRPC data plane: the Open Inference Protocol and `pointsman.v1`, over one way of serving a call."""
