"""The protobuf messages and their generated code."""
