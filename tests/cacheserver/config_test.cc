#include "cacheserver/config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

namespace tiercel {
namespace {

using ::testing::HasSubstr;

std::string ErrorOf(std::string_view text, const std::vector<std::string>& overrides = {}) {
  const auto config = LoadConfig(text, "node.yaml", overrides);
  return config ? "accepted" : config.error().message;
}

TEST(ConfigTest, DefaultsNeedOnlyTheWordInsecure) {
  const auto config = LoadConfig("insecure: true", "node.yaml", {});
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->grpc_listen, "127.0.0.1:7400");
  EXPECT_EQ(config->host_memory, kGiB);
  EXPECT_GE(config->shards, 1u);
  EXPECT_THAT(ErrorOf(""), HasSubstr("no TLS"));
}

TEST(ConfigTest, ReadsSectionsUnitsAndLists) {
  const auto config = LoadConfig(
      "insecure: true\nmemory:\n  host: 4GiB\n  slab: 64MiB\nssd:\n  path: /data\n  seal_after: 200ms\n"
      "namespaces: [default, tenant-b]\nlimits: {sessions: 7}\n",
      "node.yaml", {"log.level=debug", "shards=2"});
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->host_memory, 4 * kGiB);
  EXPECT_EQ(config->ssd_seal_after, 200 * kMillisecond);
  EXPECT_EQ(config->ssd_paths(), std::vector<std::string>{"/data"});
  EXPECT_EQ(config->namespaces, (std::vector<NamespaceConfig>{{"default"}, {"tenant-b"}}));
  EXPECT_EQ(config->max_sessions, 7u);
  EXPECT_EQ(config->level(), LogLevel::kDebug);
  EXPECT_EQ(config->shards, 2u);
  EXPECT_EQ(LoadConfig("insecure: true", "x", {"namespaces=[red, blue]"})->namespaces,
            (std::vector<NamespaceConfig>{{"red"}, {"blue"}}));
}

TEST(ConfigTest, ANamespaceSaysWhatItHoldsAndWhatItMayBecomeOnSsd) {
  const auto config = LoadConfig("insecure: true\nnamespaces:\n- plain\n- name: cheap\n  worst_class: balanced\n  demote_to: high\n",
                                 "node.yaml", {});
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->namespaces, (std::vector<NamespaceConfig>{
      {"plain"}, {"cheap", QualityClass::kBalanced, QualityClass::kHigh}}));
  const auto again = LoadConfig(PrintConfig(*config), "printed", {});
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->namespaces, config->namespaces);
  EXPECT_THAT(ErrorOf("insecure: true\nnamespaces:\n- name: a\n  worst: near\n"), HasSubstr("node.yaml:4: unknown key 'worst'"));
  EXPECT_THAT(ErrorOf("insecure: true\nnamespaces:\n- {name: a, worst_class: bad}\n"), HasSubstr("'bad' is not one of exact, near"));
  EXPECT_THAT(ErrorOf("insecure: true\nnamespaces: [{name: a, worst_class: near, demote_to: small}]\n"), HasSubstr("is worse than"));
  EXPECT_THAT(ErrorOf("insecure: true\nnamespaces: [{worst_class: near}]\n"), HasSubstr("has no name"));
  EXPECT_THAT(ErrorOf("insecure: true\nnamespaces: [a, b, a]\n"), HasSubstr("'a' is here twice"));
}

TEST(ConfigTest, ANamespaceHasAReserveAndALimitOfRam) {
  const auto config = LoadConfig("insecure: true\nmemory: {host: 64MiB, slab: 2MiB}\nnamespaces:\n- name: a\n  host_reserve: 32MiB\n  host_limit: 48MiB\n",
                                 "node.yaml", {"shards=2"});
  ASSERT_TRUE(config) << config.error().message;
  EXPECT_EQ(config->namespaces[0].host_reserve, 32 * kMiB);
  EXPECT_EQ(config->namespaces[0].host_limit, 48 * kMiB);
  const auto again = LoadConfig(PrintConfig(*config), "printed", {});
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(again->namespaces, config->namespaces);
  const auto error = [](const std::string& one) {
    return ErrorOf("insecure: true\nmemory: {host: 64MiB, slab: 2MiB}\nnamespaces: [" + one + "]\n");
  };
  EXPECT_THAT(error("{name: a, host_reserve: 40MiB}, {name: b, host_reserve: 40MiB}"), HasSubstr("'b': its host_reserve"));
  EXPECT_THAT(error("{name: a, host_reserve: 4MiB, host_limit: 2MiB}"), HasSubstr("under its host_reserve"));
  EXPECT_THAT(error("{name: a, host_limit: 1MiB}"), HasSubstr("no slab"));
  EXPECT_THAT(error("{name: a, ssd_reserve: 4MiB, ssd_limit: 2MiB}"), HasSubstr("under its ssd_reserve"));
  EXPECT_THAT(error("{name: a, ssd_limit: 1MiB}"), HasSubstr("no two segments"));
  EXPECT_THAT(error("{name: a, ssd_reserve: 30GiB}"), HasSubstr("are more than ssd.capacity"));
  EXPECT_THAT(error("{name: a, host_reserve: lots}"), HasSubstr("host_reserve: 'lots' is not a size"));
  EXPECT_THAT(ErrorOf("insecure: true\npolicy: {eviction: fifo}\n"), HasSubstr("not one of hazard, lru"));
}

TEST(ConfigTest, ATypoIsNamedWithItsLineAndTheNearestKey) {
  EXPECT_THAT(ErrorOf("insecure: true\nmemory:\n  hots: 4GiB\n"),
              HasSubstr("node.yaml:3: unknown key 'memory.hots', did you mean 'memory.host'?"));
  EXPECT_THAT(ErrorOf("insecure: true\nsdd:\n  path: /x\n"), HasSubstr("node.yaml:2: unknown key 'sdd'"));
  EXPECT_THAT(ErrorOf("insecure: true", {"shard=2"}), HasSubstr("did you mean 'shards'?"));
  EXPECT_THAT(ErrorOf("insecure: true", {"shards"}), HasSubstr("not of the form key=value"));
}

TEST(ConfigTest, ABadValueIsNamedWithWhatIsAllowed) {
  EXPECT_THAT(ErrorOf("insecure: true\nmemory:\n  host: lots\n"), HasSubstr("node.yaml:3: memory.host: 'lots' is not a size"));
  EXPECT_THAT(ErrorOf("insecure: true\nshards: 1000\n"), HasSubstr("not a number in 0..256"));
  EXPECT_THAT(ErrorOf("insecure: maybe\n"), HasSubstr("neither true nor false"));
  EXPECT_THAT(ErrorOf("insecure: true\nlog: {level: loud}\n"), HasSubstr("not one of debug, info, warn, error"));
  EXPECT_THAT(ErrorOf("insecure: true\nnamespaces: default\n"), HasSubstr("not a list"));
  EXPECT_THAT(ErrorOf("insecure: true\nssd: /data\n"), HasSubstr("node.yaml:2"));
  EXPECT_THAT(ErrorOf("- a\n- b\n"), HasSubstr("not a map"));
  EXPECT_THAT(ErrorOf("a: [b\n"), HasSubstr("node.yaml:"));
}

TEST(ConfigTest, PlainTextStaysOnThisHost) {
  EXPECT_THAT(ErrorOf("insecure: true\nlisten: {grpc: '0.0.0.0:7400'}\n"), HasSubstr("plain text is for 127.0.0.1"));
  EXPECT_EQ(ErrorOf("insecure: true\nlisten: {grpc: 'unix:/tmp/t.sock'}\n"), "accepted");
  EXPECT_THAT(ErrorOf("tls: {cert: a}\n"), HasSubstr("both tls.cert and tls.key"));
  EXPECT_THAT(ErrorOf("insecure: true\ntls: {cert: a, key: b}\n"), HasSubstr("exclude each other"));
}

TEST(ConfigTest, SizesMustFitTogether) {
  EXPECT_THAT(ErrorOf("insecure: true\nshards: 8\n"), HasSubstr("no slab"));
  EXPECT_THAT(ErrorOf("insecure: true\nssd: {path: /d, capacity: 100MiB}\n"), HasSubstr("no two segments"));
  EXPECT_THAT(ErrorOf("insecure: true\nssd: {path: '/a,/b', capacity: 200MiB}\n"), HasSubstr("on 2 disks no two segments"));
  EXPECT_THAT(ErrorOf("insecure: true\nssd: {path: '/a,/b,/a'}\n"), HasSubstr("names /a twice"));
  EXPECT_THAT(ErrorOf("insecure: true\nssd: {path: '/a,'}\n"), HasSubstr("names an empty folder"));
}

TEST(ConfigTest, ReadsBackWhatItPrints) {
  const auto config = LoadConfig("insecure: true\nmemory: {host: 2GiB}\nnamespaces: [a, b]\n", "x", {});
  ASSERT_TRUE(config);
  const auto again = LoadConfig(PrintConfig(*config), "printed", {});
  ASSERT_TRUE(again) << again.error().message;
  EXPECT_EQ(PrintConfig(*again), PrintConfig(*config));
  EXPECT_THAT(PrintSchema(), HasSubstr("additionalProperties"));
}

TEST(ConfigTest, TheExampleFileHasEveryKeyAtItsDefault) {
  std::ifstream file(TIERCEL_SOURCE_DIR "/deploy/tiercel.yaml");
  std::stringstream text;
  text << file.rdbuf();
  const auto example = LoadConfig(text.str(), "deploy/tiercel.yaml", {});
  ASSERT_TRUE(example) << example.error().message;
  Config config;
  config.insecure = true;
  const std::string printed = PrintConfig(config);
  EXPECT_THAT(text.str(), HasSubstr(printed)) << "write it anew from: tiercel-server --insecure --print-config";
}

}  // namespace
}  // namespace tiercel
