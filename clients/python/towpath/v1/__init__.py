"""Generated from protos/towpath/v1 by `make proto`: the messages of every carrier, and the stubs of gRPC.

The modules `*_pb2` need protobuf alone; `*_pb2_grpc` need the extra `grpc`. Nothing here is written by hand
but this.
"""
