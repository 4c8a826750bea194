// Artifacts in the cache itself, so that whoever reads a record finds what decodes it where the record was.
//
//   StoreArtifact(client, artifact)        two values of bytes: what it is, and it
//   FetchArtifact(client, id) --> verified --> UseArtifact is the caller's to call
//
// Keys (byte store, docs/wire.md): "tiercel/artifact/<id as 16 hex digits>/about" holds the size (u64) and
// SHA-256 of the content; "tiercel/artifact/<id>/<SHA-256 in hex>" the content.
//
// Threads: any; both block for up to the options' deadline. Errors: kNotFound: it is not there, or no longer;
// kDataLoss: what is there is not that artifact; else as the client's.
#ifndef TIERCEL_CLIENT_CPP_ARTIFACT_STORE_H_
#define TIERCEL_CLIENT_CPP_ARTIFACT_STORE_H_

#include <cstdint>
#include <memory>
#include <string>

#include "base/result.h"
#include "client/cpp/client.h"
#include "kernels/artifact.h"

namespace tiercel {

Status StoreArtifact(Client& client, const std::string& name_space, const Artifact& artifact,
                     const RequestOptions& options = {});
Result<std::shared_ptr<const Artifact>> FetchArtifact(Client& client, const std::string& name_space, uint64_t id,
                                                      const RequestOptions& options = {});

}  // namespace tiercel

#endif  // TIERCEL_CLIENT_CPP_ARTIFACT_STORE_H_
