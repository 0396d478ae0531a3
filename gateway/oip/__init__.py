"""Open Inference Protocol v2: tensors on the wire, as JSON, binary and protobuf."""
