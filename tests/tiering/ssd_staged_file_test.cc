#include "tiering/ssd_staged_file.h"

#include <fcntl.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <rocksdb/sst_file_reader.h>
#include <rocksdb/sst_file_writer.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <deque>
#include <filesystem>
#include <fstream>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <thread>

#include "base/random.h"
#include "base/units.h"
#include "tests/tiering/records.h"
#include "tests/tiering/temp_folder.h"
#include "tiering/ssd_database.h"
#include "tiering/ssd_disk_queue.h"
#include "tiering/ssd_manifest.h"
#include "tiering/ssd_rocksdb.h"
#include "tiering/ssd_segment_file.h"

namespace tiercel {
namespace {

using ::testing::HasSubstr;
namespace fs = std::filesystem;

class StagedFileTest : public ::testing::Test {
 protected:
  std::string Path(const std::string& name) const { return folder_.path() + "/" + name; }
  static ino_t Inode(const std::string& path) {
    struct stat file {};
    return stat(path.c_str(), &file) == 0 ? file.st_ino : 0;
  }
  void Make(const std::string& path, size_t bytes) {
    std::ofstream(path) << std::string(bytes, 'o');
  }
  // The file of that name becomes a spare; it has no other name afterwards, as after a drop.
  void Drop(const std::string& path) {
    std::ifstream file(path);
    const int fd = open(path.c_str(), O_RDONLY);
    const std::string held = spares_.Hold(fd);
    close(fd);
    EXPECT_NE(held, "");
    unlink(path.c_str());
    spares_.Keep(held);
  }
  // An SST of records of that size, as RocksDB's own writer makes it.
  rocksdb::Status WriteSst(const std::string& path, size_t records, size_t bytes,
                           uint64_t expected_bytes, bool direct_io = true) {
    const auto env = StagedFiles({direct_io, expected_bytes, &shard_pace_, &disk_pace_, &spares_});
    rocksdb::Options options = DataOptions(direct_io);
    options.env = env.get();
    rocksdb::SstFileWriter writer(rocksdb::EnvOptions(), options);
    rocksdb::Status status = writer.Open(path);
    for (size_t i = 0; status.ok() && i < records; ++i)
      status = writer.Put(Name(i), ToSlice(RecordOf(i, bytes)));
    if (status.ok()) status = writer.Finish();
    return status;
  }
  static void ExpectSst(const std::string& path, size_t records, size_t bytes) {
    rocksdb::SstFileReader reader(DataOptions(true));
    ASSERT_TRUE(reader.Open(path).ok());
    EXPECT_TRUE(reader.VerifyChecksum().ok());
    std::unique_ptr<rocksdb::Iterator> it(reader.NewIterator(rocksdb::ReadOptions()));
    size_t n = 0;
    for (it->SeekToFirst(); it->Valid(); it->Next(), ++n) {
      EXPECT_EQ(it->key().ToString(), Name(n));
      EXPECT_TRUE(it->value() == ToSlice(RecordOf(n, bytes))) << n;
    }
    EXPECT_EQ(n, records);
  }
  static std::string Name(size_t i) {
    return std::string(7 - std::to_string(i).size(), '0') + std::to_string(i);
  }

  TempFolder folder_;
  Pacer shard_pace_;
  Pacer disk_pace_;
  SpareFiles spares_{folder_.path()};
};

TEST_F(StagedFileTest, IsWhatRocksDbWritesItselfWhateverLengthWasExpected) {
  const size_t sizes[] = {1, 100, 4000, 65'536, 300'000, 5'000'000};
  for (const size_t bytes : sizes) {
    for (const uint64_t expected : {uint64_t{0}, uint64_t{20'000'000}}) {
      const std::string path = Path("sst");
      const size_t records = bytes > kMiB ? 2 : 20;
      ASSERT_TRUE(WriteSst(path, records, bytes, expected).ok());
      ExpectSst(path, records, bytes);
      struct stat file {};
      ASSERT_EQ(stat(path.c_str(), &file), 0);
      EXPECT_LT(static_cast<uint64_t>(file.st_size), records * (bytes + 200) + 4096)
          << "no space that was taken ahead is left over";
      EXPECT_LT(static_cast<uint64_t>(file.st_blocks) * 512, records * (bytes + 200) + 64 * kKiB);
      unlink(path.c_str());
    }
  }
}

TEST_F(StagedFileTest, IsWrittenOverASpareThatIsLongerOrShorter) {
  for (const size_t spare_bytes : {size_t{10}, size_t{100'000}, size_t{9'000'000}}) {
    Make(Path("dropped"), spare_bytes);
    const ino_t inode = Inode(Path("dropped"));
    Drop(Path("dropped"));
    ASSERT_TRUE(WriteSst(Path("sst"), 20, 65'536, 2 * kMiB).ok());
    EXPECT_EQ(Inode(Path("sst")), inode);
    ExpectSst(Path("sst"), 20, 65'536);
    unlink(Path("sst").c_str());
  }
}

TEST_F(StagedFileTest, IsTheSameAtAPaceAndWithoutDirectWrites) {
  shard_pace_.SetRate(200'000'000);
  ASSERT_TRUE(WriteSst(Path("paced"), 30, 65'536, 2 * kMiB).ok());
  ExpectSst(Path("paced"), 30, 65'536);
  shard_pace_.SetRate(0);
  ASSERT_TRUE(WriteSst(Path("buffered"), 30, 65'536, 2 * kMiB, false).ok());
  ExpectSst(Path("buffered"), 30, 65'536);
}

// As where a container's rules or fs.aio-max-nr say no: all reads and writes are done one by one.
TEST_F(StagedFileTest, IsWrittenAndReadWhereTheKernelGivesNoQueue) {
  std::thread([this] {
    sock_filter rules[] = {
        BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(seccomp_data, nr)),
        BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_io_setup, 0, 1),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
        BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
    };
    const sock_fprog program = {std::size(rules), rules};
    ASSERT_EQ(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0), 0);
    ASSERT_EQ(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program), 0);  // Of this thread alone.
    ASSERT_FALSE(DiskQueue().Open());
    ASSERT_TRUE(WriteSst(Path("sst"), 3, 5'000'000, 16 * kMiB).ok());
    ExpectSst(Path("sst"), 3, 5'000'000);

    SsdEntry entry;
    entry.key = KeyOf(1);
    entry.where = {7, 0};
    entry.record_bytes = 5'000'000;
    const auto env = StagedFiles({true, 0, &shard_pace_, &disk_pace_, &spares_});
    rocksdb::Options options = DataOptions(true);
    options.env = env.get();
    rocksdb::SstFileWriter writer(rocksdb::EnvOptions(), options);
    ASSERT_TRUE(writer.Open(Path("segment")).ok());
    ASSERT_TRUE(writer.Put(DataKey(7, 0, &entry.key), ToSlice(RecordOf(1, 5'000'000))).ok());
    ASSERT_TRUE(writer.Finish().ok());
    std::vector<std::byte> read(5'000'000);
    ASSERT_TRUE(SegmentFile::Open(Path("segment"), true, {entry}, false)->Read(entry, read));
    EXPECT_EQ(read, RecordOf(1, 5'000'000));
  }).join();
}

TEST_F(StagedFileTest, NeverWritesOverAFileThatStillHasAnotherName) {
  Make(Path("dropped"), 100'000);
  const int fd = open(Path("dropped").c_str(), O_RDONLY);
  const std::string held = spares_.Hold(fd);
  close(fd);
  spares_.Keep(held);  // Though it is not deleted.
  EXPECT_FALSE(spares_.Take(Path("sst")));
  ASSERT_TRUE(WriteSst(Path("sst"), 20, 65'536, 2 * kMiB).ok());
  EXPECT_NE(Inode(Path("sst")), Inode(Path("dropped")));
  std::ifstream in(Path("dropped"));
  const std::string bytes{std::istreambuf_iterator<char>(in), std::istreambuf_iterator<char>()};
  EXPECT_EQ(bytes, std::string(100'000, 'o'));
  unlink(Path("dropped").c_str());
  EXPECT_TRUE(spares_.Take(Path("later"))) << "as soon as it has none";
}

TEST_F(StagedFileTest, KeepsAFileForEachWriteThatIsAboutToBeginAndNothingAfterwards) {
  const auto files = [this] { return std::distance(fs::directory_iterator(folder_.path()), {}); };
  for (int i = 0; i < 2; ++i) {  // Two writes are about to begin.
    Make(Path("dropped"), 1000);
    Drop(Path("dropped"));
  }
  EXPECT_TRUE(spares_.Take(Path("first")));
  EXPECT_TRUE(spares_.Take(Path("second")));
  EXPECT_FALSE(spares_.Take(Path("third")));

  // One that could not be taken is left for the next write, whose own drop is not held then.
  Make(Path("dropped"), 1000);
  const int fd = open(Path("dropped").c_str(), O_RDONLY);
  spares_.Keep(spares_.Hold(fd));
  EXPECT_FALSE(spares_.Take(Path("third")));
  unlink(Path("dropped").c_str());
  EXPECT_EQ(spares_.Hold(fd), "");
  close(fd);
  EXPECT_EQ(files(), 3);
  spares_.Clear();
  EXPECT_EQ(files(), 2);
}

TEST_F(StagedFileTest, OfWhatSeveralWritesCouldNotTakeYetOneFileIsLeft) {
  for (const char* name : {"first", "second", "third"}) {
    Make(Path(name), 1000);
    const int fd = open(Path(name).c_str(), O_RDONLY);
    spares_.Keep(spares_.Hold(fd));  // Though it is not deleted.
    close(fd);
  }
  for (int i = 0; i < 3; ++i) EXPECT_FALSE(spares_.Take(Path("sst")));
  EXPECT_EQ(std::distance(fs::directory_iterator(folder_.path()), {}), 3 + 1);
}

TEST_F(StagedFileTest, WhatCannotBeWrittenIsAnErrorThatNamesTheFile) {
  const rocksdb::Status status = WriteSst(Path("missing/sst"), 1, 100, 0);
  EXPECT_TRUE(status.IsIOError()) << status.ToString();
  EXPECT_THAT(status.ToString(), HasSubstr(Path("missing/sst")));
  fs::create_symlink("/dev/full", Path("full"));  // RocksDB deletes what it could not finish.
  const rocksdb::Status full = WriteSst(Path("full"), 1, 100, 0, false);
  EXPECT_TRUE(full.IsNoSpace()) << full.ToString();
  EXPECT_THAT(full.ToString(), HasSubstr(Path("full")));
}

// ---- in the store ------------------------------------------------------------------------------

TEST(RecycledSegmentsTest, AreTheSameFilesAndGiveBackWhatWasWrittenLast) {
  TempFolder folder;
  SsdDisk::Options disk_options;
  disk_options.path = folder.path();
  SsdStore::Options options;
  options.segment_bytes = 256 * kKiB;
  options.capacity_bytes = 2 * kMiB;
  options.verify_record = VerifyTestRecord;
  std::set<uint64_t> live;
  std::map<uint64_t, SsdEntry> entries;
  // A number may come again with another file, the time that it was made does not.
  using File = std::pair<uint64_t, std::pair<int64_t, uint32_t>>;
  const auto files = [&] {
    std::set<File> found;
    for (const auto& item : fs::directory_iterator(folder.path() + "/data")) {
      struct statx file {};
      if (item.path().extension() == ".sst" &&
          statx(AT_FDCWD, item.path().c_str(), 0, STATX_INO | STATX_BTIME, &file) == 0)
        found.insert({file.stx_ino, {file.stx_btime.tv_sec, file.stx_btime.tv_nsec}});
    }
    return found;
  };
  uint64_t served = 0;
  for (int open = 0; open < 2; ++open) {
    disk_options.writers_per_shard = open == 0 ? 2 : 1;
    auto disk = SsdDisk::Open(disk_options);
    ASSERT_TRUE(disk) << disk.error().message;
    auto store = std::move(*(*disk)->OpenShard(0, options, Clock::Monotonic()));
    std::map<BlockKey, uint64_t> number_of;
    const auto forget = [&](const std::vector<SsdEntry>& dropped) {
      for (const SsdEntry& entry : dropped) entries.erase(number_of[entry.key]);
    };
    store->SetDropListener(forget);
    auto recovered = store->Recover();
    ASSERT_TRUE(recovered);
    EXPECT_EQ(recovered->size(), entries.size());
    const auto poll_until = [&](const auto& condition) {
      const Nanos end = Clock::Monotonic().Now() + 20 * kSecond;
      while (!condition()) {
        if (Clock::Monotonic().Now() > end) return false;
        // Whoever asks how it stands keeps no file from being written over.
        if (store->Poll() == 0) (void)store->stats();
      }
      return true;
    };
    for (const auto& [n, entry] : entries) number_of[entry.key] = n;
    std::set<File> all = files();
    const uint64_t first = open * 1000;
    std::deque<std::vector<std::byte>> records;
    for (uint64_t n = first; n < first + 400; ++n) {
      SsdEntry entry;
      entry.key = KeyOf(n);
      entry.generation = n + 1;
      records.push_back(RecordOf(n, 30'000 + n % 7 * 1000));
      entry.record_bytes = static_cast<uint32_t>(records.back().size());
      entry.raw_bytes = entry.record_bytes;
      number_of[entry.key] = n;
      bool stored = false;
      ASSERT_TRUE(poll_until([&] {
        return store
            ->Append(entry, records.back(),
                     [&entries, n](Result<SsdEntry> where) {
                       if (where) entries[n] = *where;
                     })
            .has_value();
      }));
      if (n % 16 == 15) {
        store->Flush([&](Status) { stored = true; });
        ASSERT_TRUE(poll_until([&] { return stored; }));
        all.merge(files());
      }
    }
    // Some fifty segments were written in either life, each a file of its own if none were written
    // over.
    EXPECT_LT(all.size(), 16u);
    ASSERT_GT(entries.size(), 30u);
    for (const auto& [n, entry] : std::map(entries)) {
      std::vector<std::byte> bytes(entry.record_bytes);
      std::optional<Status> read;
      ASSERT_TRUE(store->Read(entry, bytes, [&](Status status) { read = std::move(status); }));
      ASSERT_TRUE(poll_until([&] { return read.has_value(); }));
      ASSERT_TRUE(*read) << n << ": " << read->error().message;
      EXPECT_TRUE(bytes == RecordOf(n, 30'000 + n % 7 * 1000)) << n;
      ++served;
    }
    store->Shutdown(5 * kSecond);
    store.reset();
  }
  EXPECT_GT(served, 60u);
}

}  // namespace
}  // namespace tiercel
