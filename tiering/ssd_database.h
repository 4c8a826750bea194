// The two RocksDB databases of a disk: how they are tuned, opened and closed. Why these options,
// with measurements: docs/adr/0008-ssd-segments.md.
//
// Ownership: a Database closes itself; its column families live as long. Threads: opening and
// closing from one, the handles from any. Errors: FromRocks says which code a RocksDB status
// becomes.
#ifndef TIERCEL_TIERING_SSD_DATABASE_H_
#define TIERCEL_TIERING_SSD_DATABASE_H_

#include <rocksdb/db.h>

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "base/bytes.h"
#include "base/result.h"

namespace tiercel {

// kNotFound for what is not there, kDataLoss for what does not verify, kUnavailable for the rest.
Error FromRocks(const rocksdb::Status& status, std::string_view what);

inline rocksdb::Slice ToSlice(ByteSpan bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}
inline std::string_view ToView(const rocksdb::Slice& slice) { return {slice.data(), slice.size()}; }

rocksdb::Options DataOptions(bool direct_io);
// For an SstFileWriter: the same, and no row of at most so many bytes, its key included, is copied
// more than once.
rocksdb::Options SegmentOptions(bool direct_io, uint64_t largest_row);
rocksdb::Options IndexOptions();
rocksdb::IngestExternalFileOptions
IngestOptions();  // How a segment's file becomes part of the data.
std::string FamilyName(uint32_t shard);
// Whether a segment's file has a first record and a manifest that verify: without them it cannot be
// ingested, and a RocksDB built with assertions, as Debian's is, ends the process when it tries.
// segment: its number. family: whose file it is, also of one that has no segment.
Status CheckIngestible(const std::string& path, const rocksdb::Options& options, uint32_t* segment,
                       std::string* family);
// Of a shard's clear marks in the data database's default family.
std::string ClearPrefix(uint32_t shard);

struct Database {
  std::unique_ptr<rocksdb::DB> db;
  rocksdb::ColumnFamilyHandle* common = nullptr;       // The default one.
  std::vector<rocksdb::ColumnFamilyHandle*> families;  // One a shard.

  Database() = default;
  ~Database() { Close(); }
  Database(const Database&) = delete;
  Database& operator=(const Database&) = delete;
  void Close();
};

// Whether the data database knows all clear marks of the shard, so that the index is not needed for
// them.
bool HasAllClears(const Database& data, uint32_t shard);
std::string AllClearsKey(uint32_t shard);

// Errors: kFailedPrecondition: written with more shards; else FromRocks: kDataLoss where it is
// damaged.
Status OpenDatabase(const std::string& path, const rocksdb::Options& options, uint32_t shards,
                    Database* out);

}  // namespace tiercel

#endif  // TIERCEL_TIERING_SSD_DATABASE_H_
