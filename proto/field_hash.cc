#include "proto/field_hash.h"

#include <openssl/evp.h>

#include "base/check.h"

namespace tiercel {

struct FieldHash::State {
  // One context a thread, reused: EVP_MD_CTX_new and the digest lookup cost more than the hash.
  EVP_MD_CTX* context = EVP_MD_CTX_new();
  ~State() { EVP_MD_CTX_free(context); }
};

FieldHash::FieldHash(std::string_view domain_tag) : state_(std::make_unique<State>()) {
  static const EVP_MD* const kSha256 = EVP_MD_fetch(nullptr, "SHA256", nullptr);
  TIERCEL_CHECK(kSha256 != nullptr);
  TIERCEL_CHECK(EVP_DigestInit_ex(state_->context, kSha256, nullptr) == 1);
  Add(domain_tag);
}

FieldHash::~FieldHash() = default;

FieldHash& FieldHash::Add(ByteSpan field) {
  const auto length = static_cast<uint32_t>(field.size());
  TIERCEL_CHECK(length == field.size());
  TIERCEL_CHECK(EVP_DigestUpdate(state_->context, &length, sizeof(length)) == 1);
  TIERCEL_CHECK(EVP_DigestUpdate(state_->context, field.data(), field.size()) == 1);
  return *this;
}

FieldHash& FieldHash::AddU32(uint32_t value) {
  return Add(ByteSpan(reinterpret_cast<const std::byte*>(&value), sizeof(value)));
}

std::array<std::byte, 32> FieldHash::Finish() {
  std::array<std::byte, 32> digest;
  unsigned size = 0;
  TIERCEL_CHECK(EVP_DigestFinal_ex(state_->context, reinterpret_cast<unsigned char*>(digest.data()),
                                   &size) == 1);
  TIERCEL_CHECK(size == digest.size());
  return digest;
}

}  // namespace tiercel
