# The stream transport is an edge of its own, so that the rest of the room stays free of gRPC.
tiercel_room(transport_grpc
  SOURCES ${PROJECT_SOURCE_DIR}/transport/grpc_pipe.cc ${PROJECT_SOURCE_DIR}/transport/grpc_stream.cc
  HEADERS ${PROJECT_SOURCE_DIR}/transport/grpc_pipe.h ${PROJECT_SOURCE_DIR}/transport/grpc_stream.h
  DEPS tiercel::transport tiercel::proto_grpc)
