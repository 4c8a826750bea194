#include "client/cpp/artifact_store.h"

#include <fmt/format.h>
#include <openssl/sha.h>

#include <array>
#include <cstring>
#include <vector>

#include "client/cpp/pieces.h"
#include "proto/field_hash.h"

namespace tiercel {
namespace {

constexpr size_t kAboutBytes = 40;
using Sha = std::array<std::byte, SHA256_DIGEST_LENGTH>;

Sha ShaOf(ByteSpan bytes) {
  Sha sha;
  SHA256(reinterpret_cast<const unsigned char*>(bytes.data()), bytes.size(), reinterpret_cast<unsigned char*>(sha.data()));
  return sha;
}

Result<Chain> ChainOf(const std::string& name_space, const std::string& key, uint64_t bytes) {
  ScopeFields fields;
  fields.model = "tiercel cli";  // The byte store's scope.
  Chain::Options options;
  options.name_space = name_space;
  options.pieces = PiecesOf(KvLayout::Opaque(), bytes).count;
  if (options.pieces == 0) return Fail(Code::kInvalidArgument, fmt::format("an artifact of {} bytes is too large", bytes));
  TIERCEL_ASSIGN(options.scope, MakeScope(fields));
  Chain chain(options);
  TIERCEL_TRY(chain.Append(FieldHash("tiercel cli key v1").Add(key).Finish()));
  return chain;
}

std::string KeyOf(uint64_t id, std::string_view what) { return fmt::format("tiercel/artifact/{:016x}/{}", id, what); }

Status PutBytes(Client& client, const Chain& chain, ByteSpan bytes, const RequestOptions& options) {
  const PutSource source{PutSource::Kind::kBlock, bytes, nullptr, {}};
  Completion done = client.Put(chain, 0, {&source, 1}, KvLayout::Opaque(), options);
  while (!done.released) done.released = client.Wait(done.ticket).released;
  TIERCEL_TRY(done.status);
  if (done.blocks[0].status == Code::kOk) return OkStatus();
  return Fail(done.blocks[0].status, fmt::format("the artifact was not stored ({})", Name(done.blocks[0].reason)));
}

Status GetBytes(Client& client, const Chain& chain, MutableByteSpan bytes, const RequestOptions& options) {
  GetSlot slot;
  slot.dst = bytes;
  Completion done = client.Get(chain, 0, {&slot, 1}, KvLayout::Opaque(), options);
  const BlockResult block = done.blocks.empty() ? BlockResult() : done.blocks[0];
  const Status status = done.status;
  while (!done.released) done.released = client.Wait(done.ticket).released;
  TIERCEL_TRY(status);
  if (block.status != Code::kOk) return Fail(Code::kNotFound, fmt::format("a miss ({})", Name(block.reason)));
  if (block.bytes != bytes.size()) return Fail(Code::kDataLoss, "of another size");
  return OkStatus();
}

}  // namespace

Status StoreArtifact(Client& client, const std::string& name_space, const Artifact& artifact, const RequestOptions& options) {
  const Sha sha = ShaOf(artifact.bytes());
  std::array<std::byte, kAboutBytes> about;
  StoreLe<uint64_t>(about.data(), artifact.bytes().size());
  std::memcpy(about.data() + 8, sha.data(), sha.size());
  // The content first: who finds what it is finds it.
  TIERCEL_ASSIGN(const Chain content, ChainOf(name_space, KeyOf(artifact.id(), ToHex(sha)), artifact.bytes().size()));
  TIERCEL_TRY(PutBytes(client, content, artifact.bytes(), options));
  TIERCEL_ASSIGN(const Chain head, ChainOf(name_space, KeyOf(artifact.id(), "about"), kAboutBytes));
  return PutBytes(client, head, about, options);
}

Result<std::shared_ptr<const Artifact>> FetchArtifact(Client& client, const std::string& name_space, uint64_t id,
                                                      const RequestOptions& options) {
  const auto failed = [id](const Error& why) {
    return Fail(why.code, fmt::format("artifact {:016x}: {}", id, why.message));
  };
  std::array<std::byte, kAboutBytes> about;
  TIERCEL_ASSIGN(const Chain head, ChainOf(name_space, KeyOf(id, "about"), kAboutBytes));
  if (const Status got = GetBytes(client, head, about, options); !got) return failed(got.error());
  const auto size = LoadLe<uint64_t>(about.data());
  if (size > kMaxArtifactBytes) return failed({Code::kDataLoss, fmt::format("{} bytes are more than any has", size)});
  Sha sha;
  std::memcpy(sha.data(), about.data() + 8, sha.size());
  Result<Chain> content = ChainOf(name_space, KeyOf(id, ToHex(sha)), size);
  if (!content) return failed(content.error());
  std::vector<std::byte> bytes(size);
  if (const Status got = GetBytes(client, *content, bytes, options); !got) return failed(got.error());
  if (ShaOf(bytes) != sha) return failed({Code::kDataLoss, "the content has another SHA-256"});
  Result<std::shared_ptr<const Artifact>> artifact = Artifact::Parse(bytes);
  if (!artifact) return failed(artifact.error());
  if ((*artifact)->id() != id) return failed({Code::kDataLoss, "the content is another artifact"});
  return artifact;
}

}  // namespace tiercel
