#include "cacheserver/http_edge.h"

#include <CivetServer.h>
#include <fmt/format.h>

#include <functional>

#include "base/units.h"
#include "cacheserver/metrics.h"
#include "cacheserver/node.h"

namespace tiercel {
namespace {

struct Answer {
  int status = 200;
  std::string type = "text/plain; charset=utf-8";
  std::string body;
};

class Page final : public CivetHandler {
 public:
  explicit Page(std::function<Answer()> make) : make_(std::move(make)) {}
  bool handleGet(CivetServer* /*server*/, mg_connection* connection) override {
    const Answer answer = make_();
    mg_printf(connection,
              "HTTP/1.1 %d %s\r\nContent-Type: %s\r\nContent-Length: %zu\r\nConnection: close\r\n"
              "X-Content-Type-Options: nosniff\r\nCache-Control: no-store\r\n\r\n",
              answer.status, answer.status == 200 ? "OK" : "Service Unavailable", answer.type.c_str(),
              answer.body.size());
    mg_write(connection, answer.body.data(), answer.body.size());
    return true;
  }

 private:
  const std::function<Answer()> make_;
};

std::string Escape(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') out += "&lt;";
    else if (c == '&') out += "&amp;";
    else out.push_back(c);
  }
  return out;
}

Answer StatusPage(const Node& node) {
  const NodeSnapshot s = node.Snapshot();
  std::string rows;
  for (size_t i = 0; i < s.shards.size(); ++i) {
    const TierStack::Stats& t = s.shards[i].tiers;
    rows += fmt::format("<tr><td>{}<td>{}<td>{} of {}<td>{}<td>{}<td>{}<td>{}\n", i, t.blocks, FormatBytes(t.host_bytes),
                        FormatBytes(t.host_capacity), s.shards[i].has_ssd ? FormatBytes(t.ssd.used_bytes) : "none",
                        t.hits_host, t.hits_ssd, t.misses);
  }
  Answer answer;
  answer.type = "text/html; charset=utf-8";
  answer.body = fmt::format(
      "<!doctype html><title>Tiercel {0}</title><style>body{{font:15px sans-serif;margin:2em}}td,th{{padding:.2em 1em;"
      "text-align:right}}</style><h1>Tiercel node {0}</h1><p>version {1}, up {2:.0f} s, {3} sessions, resident outside "
      "the arena {4}<table><tr><th>shard<th>blocks<th>RAM<th>SSD<th>RAM hits<th>SSD hits<th>misses\n{5}</table>"
      "<p><a href=/metrics>metrics</a>",
      Escape(s.node_id), s.version, s.uptime_seconds, s.sessions, FormatBytes(s.rss_outside_arena()), rows);
  return answer;
}

class CivetEdge final : public HttpEdge {
 public:
  CivetEdge(Node& node, std::unique_ptr<CivetServer> server, std::string host)
      : server_(std::move(server)), host_(std::move(host)),
        metrics_([&node] { return Answer{200, "text/plain; version=0.0.4; charset=utf-8", MetricsText(node.Snapshot())}; }),
        live_([] { return Answer{200, "text/plain", "ok\n"}; }),
        ready_([&node] {
          std::string why;
          const bool ready = node.ready(&why);
          return Answer{ready ? 200 : 503, "text/plain", ready ? "ok\n" : why + "\n"};
        }),
        status_([&node] { return StatusPage(node); }) {
    server_->addHandler("/metrics$", metrics_);
    server_->addHandler("/livez$", live_);
    server_->addHandler("/readyz$", ready_);
    server_->addHandler("/$", status_);
  }
  ~CivetEdge() override { server_.reset(); }
  std::string address() const override {
    const auto ports = server_->getListeningPorts();
    return fmt::format("{}:{}", host_, ports.empty() ? 0 : ports.front());
  }

 private:
  std::unique_ptr<CivetServer> server_;
  const std::string host_;
  Page metrics_, live_, ready_, status_;
};

}  // namespace

Result<std::unique_ptr<HttpEdge>> HttpEdge::Start(Node& node, const std::string& listen) {
  const size_t colon = listen.rfind(':');
  if (colon == std::string::npos) {
    return Fail(Code::kInvalidArgument, fmt::format("listen.http '{}' is not host:port", listen));
  }
  const std::vector<std::string> options = {
      "listening_ports", listen, "num_threads", "4", "request_timeout_ms", "5000",
      "max_request_size", "8192", "enable_keep_alive", "no"};
  try {  // The library throws when the port is taken; nothing of ours does.
    auto server = std::make_unique<CivetServer>(options);
    return std::make_unique<CivetEdge>(node, std::move(server), listen.substr(0, colon));
  } catch (const CivetException& e) {
    return Fail(Code::kUnavailable, fmt::format("listen.http {}: {}", listen, e.what()));
  }
}

}  // namespace tiercel
