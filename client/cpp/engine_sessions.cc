// Engine's nodes: opening, greeting, losing and probing them.
#include <fmt/format.h>

#include <algorithm>

#include "base/log.h"
#include "client/cpp/engine.h"

namespace tiercel {

std::string Engine::SessionKey(std::string_view node_id, std::string_view endpoint) {
  return fmt::format("{} {}", node_id, endpoint);
}

Transport* Engine::FindWay(TransportKind kind) {
  for (Way& way : ways_) {
    if (way.kind == kind) return way.transport.get();
  }
  return nullptr;
}

Session& Engine::SessionFor(const NodeInfo& node) {
  std::string key = SessionKey(node.id, node.endpoint);
  auto found = sessions_.find(key);
  if (found == sessions_.end()) {
    const uint64_t seed = std::hash<std::string>()(key) ^ static_cast<uint64_t>(clock_.Now());
    auto session =
        std::make_unique<Session>(node.id, node.endpoint, host_.ControlOf(node.endpoint), seed);
    found = sessions_.emplace(std::move(key), std::move(session)).first;
    BeginOpen(*found->second);
  }
  found->second->Revive();
  return *found->second;
}

Session* Engine::FindSession(const Router::Target& target) {
  if (target.node == nullptr) return nullptr;
  for (auto& [key, session] : sessions_) {
    if (session->node_id() == target.node->id && session->endpoint() == target.node->endpoint) {
      return session.get();
    }
  }
  return nullptr;
}

void Engine::SetView(View view) {
  now_ = clock_.Now();
  router_.Replace(std::move(view), now_);
  view_until_ = now_ + kViewGrace;
  Soon(view_until_);
  for (auto& [key, session] : sessions_) session->Retire();
  for (const NodeInfo& node : router_.view().nodes) SessionFor(node);
  if (const View* previous = router_.previous(now_)) {
    for (const NodeInfo& node : previous->nodes) {
      const auto found = sessions_.find(SessionKey(node.id, node.endpoint));
      if (found != sessions_.end()) found->second->Revive();
    }
  }
}

void Engine::BeginOpen(Session& session) {
  session.Opening(now_);
  Soon(session.due());
  SessionAsk ask = ask_;
  std::erase_if(ask.transports, [&](TransportKind kind) {
    return kind != TransportKind::kGrpc && !session.Usable(kind, now_);
  });
  if (std::find(ask.transports.begin(), ask.transports.end(), TransportKind::kUcx) ==
      ask.transports.end()) {
    ask.ucx_address.clear();
  }
  session.control().Open(
      ask, Session::kOpenTimeout,
      [mail = host_.mailbox(), key = SessionKey(session.node_id(), session.endpoint()),
       attempt = session.attempt()](Result<SessionOffer> offer) {
        // A full mailbox loses the offer; the attempt then times out.
        [[maybe_unused]] const bool pushed =
            mail->Push([key, attempt, offer = std::move(offer)](Engine& engine) mutable {
              engine.OnOffer(key, attempt, std::move(offer));
            });
      });
}

void Engine::OnOffer(const std::string& session_key, uint64_t attempt, Result<SessionOffer> offer) {
  const auto found = sessions_.find(session_key);
  if (found == sessions_.end()) return;
  Session& session = *found->second;
  if (session.attempt() != attempt || session.state() != Session::State::kOpening) {
    if (offer) session.control().Close(offer->session_id);
    return;
  }
  if (!offer) {
    LoseSession(session, offer.error(), true);
    return;
  }
  session.Greeting(std::move(*offer), now_);
  Soon(session.due());
  const SessionOffer& terms = session.offer();
  session.control().KeepAlive(terms.session_id, [mail = host_.mailbox(), session_key,
                                                 id = terms.session_id](const Error& why) {
    [[maybe_unused]] const bool pushed = mail->Push(
        [session_key, id, why](Engine& engine) { engine.OnSessionLost(session_key, id, why); });
  });
  for (const ShardOffer& shard : terms.shards) {
    Transport* transport = FindWay(shard.transport);
    if (transport == nullptr) {
      LoseSession(
          session,
          Error{Code::kFailedPrecondition,
                fmt::format("node {} offers shard {} over {}, which this client does not have",
                            terms.node_id, shard.shard, Name(shard.transport))},
          true);
      return;
    }
    Lane& lane = session.lane(shard.shard);
    lane.reason = shard.reason;
    lane.transport = transport;
    lane.welcomed = false;
    Result<std::unique_ptr<Endpoint>> endpoint =
        shard.transport == TransportKind::kGrpc
            ? session.control().ConnectStream(*transport, terms.session_id, shard.shard)
            : transport->Connect(terms.session_id, shard.address);
    Status said = OkStatus();
    if (endpoint) {
      lane.endpoint = std::move(*endpoint);
      lane.endpoint->user = &lane;
      FrameHeader hello;
      hello.op = Op::kHello;
      said = lane.endpoint->Send(hello, AsBytes(shard.token), {}, nullptr);
    } else {
      said = Fail(endpoint.error().code, endpoint.error().message);
    }
    if (!said) {
      session.GreetFailed(shard.transport, now_);
      LoseSession(session, said.error(), true);
      return;
    }
  }
}

void Engine::OnSessionLost(const std::string& session_key, uint64_t session_id, const Error& why) {
  const auto found = sessions_.find(session_key);
  if (found == sessions_.end() || found->second->session_id() != session_id) return;
  LoseSession(*found->second, why, true);
}

void Engine::LoseSession(Session& session, const Error& why, bool counts) {
  const uint64_t id = session.session_id();
  if (session.state() == Session::State::kGreeting || session.open()) {
    LogDebug("client.session_lost", {{"node", session.node_id()}, {"why", why.ToString()}});
  }
  // Every Receive and Send of this node ends inside Close; only then is what they touched let go.
  for (auto& lane : session.lanes()) {
    lane->welcomed = false;
    if (lane->endpoint == nullptr) continue;
    lane->endpoint->user = nullptr;
    lane->endpoint->Close(CloseMode::kForce);
    graveyard_.push_back(std::move(lane->endpoint));
  }
  session.Failed(why, now_);
  if (counts) session.breaker().Failed(now_);
  Soon(session.due());
  wires_.ForEach([&](Wire& wire) {
    if (wire.lane == nullptr || wire.lane->session != &session) return;
    const bool sent = wire.state != Wire::State::kQueued;
    FailWire(wire, sent ? MissReason::kDeadline : MissReason::kBreaker, Code::kUnavailable);
  });
  for (auto& lane : session.lanes()) {
    queued_ -= lane->queue.size();
    lane->queue.clear();
  }
  if (id != 0) session.control().Close(id);
}

void Engine::OnAccept(std::unique_ptr<Endpoint> endpoint) {
  graveyard_.push_back(std::move(endpoint));  // Nobody connects to a client.
}

void Engine::OnClosed(Endpoint& endpoint, const Error& why) {
  auto* lane = static_cast<Lane*>(endpoint.user);
  if (lane == nullptr) return;
  Session& session = *lane->session;
  if (session.state() == Session::State::kGreeting && !lane->welcomed &&
      lane->transport != nullptr) {
    session.GreetFailed(lane->transport->kind(), now_);
  }
  LoseSession(session, why, true);
}

void Engine::Probe(Session& session) {
  for (auto& lane : session.lanes()) {
    if (!lane->welcomed) continue;
    Wire* wire = wires_.Add();
    if (wire == nullptr) return;
    wire->kind = Wire::Kind::kProbe;
    wire->state = Wire::State::kForsaken;
    wire->op = nullptr;
    wire->lender = nullptr;
    wire->lane = lane.get();
    wire->first = 0;
    wire->count = 1;
    wire->answered = 0;
    wire->left = 1;
    wire->transfers = 0;
    wire->previous = false;
    wire->put_owner = nullptr;
    wire->put_bytes = 0;
    wire->charged_bytes = 0;
    wire->force_at = now_ + Breaker::kProbeInterval;
    wire->put_memory = {};
    wire->landing.clear();
    ++session.requests_in_flight;
    session.probing = true;
    Soon(wire->force_at);
    meta_ = ChainMeta{};
    meta_.keys.resize(1);
    meta_.anchors.resize(1);
    const size_t bytes = EncodeChainMeta(meta_, meta_bytes_.data());
    FrameHeader header;
    header.op = Op::kMatch;
    header.flags = kFlagNoTouch;
    header.req_id = wire->id;
    header.count = 1;
    header.deadline_ms = static_cast<uint32_t>(Breaker::kProbeInterval / kMillisecond);
    // A queue too full for a probe is a node that does not answer: force_at will tell.
    [[maybe_unused]] const Status sent =
        lane->endpoint->Send(header, {meta_bytes_.data(), bytes}, {}, nullptr);
    return;
  }
}

void Engine::SessionTimers() {
  std::vector<std::string> gone;
  for (auto& [key, session] : sessions_) {
    switch (session->state()) {
      case Session::State::kResting:
        if (session->retired()) {
          gone.push_back(key);
        } else if (now_ >= session->due()) {
          BeginOpen(*session);
        }
        break;
      case Session::State::kOpening:
        if (now_ >= session->due()) {
          LoseSession(*session,
                      Error{Code::kDeadlineExceeded, session->endpoint() + " does not answer"},
                      true);
        }
        break;
      case Session::State::kGreeting:
        if (now_ >= session->due()) {
          for (auto& lane : session->lanes()) {
            if (lane->transport != nullptr && !lane->welcomed) {
              session->GreetFailed(lane->transport->kind(), now_);
              break;
            }
          }
          LoseSession(*session,
                      Error{Code::kDeadlineExceeded,
                            "node " + session->node_id() + " does not answer HELLO"},
                      true);
        }
        break;
      case Session::State::kOpen:
        if (session->retired()) {
          LoseSession(*session, Error{Code::kUnavailable, "no longer in the view"}, false);
          gone.push_back(key);
        } else if (session->breaker().ProbeDue(now_)) {
          Probe(*session);
        }
        if (session->breaker().open()) Soon(session->breaker().next_probe());
        break;
    }
    if (session->due() > 0) Soon(session->due());
  }
  for (const std::string& key : gone) sessions_.erase(key);
}

bool Engine::settled() const {
  return !sessions_.empty() &&
         std::all_of(sessions_.begin(), sessions_.end(),
                     [](const auto& entry) { return entry.second->attempted(); });
}

bool Engine::any_open() const {
  return std::any_of(sessions_.begin(), sessions_.end(),
                     [](const auto& entry) { return entry.second->open(); });
}

std::string Engine::why_not() const {
  std::string why;
  for (const auto& [key, session] : sessions_) {
    why += fmt::format("{}{} at {}: {}", why.empty() ? "" : "; ", session->node_id(),
                       session->endpoint(),
                       session->last_error().empty() ? "no answer yet" : session->last_error());
  }
  return why;
}

std::vector<Client::NodeStatus> Engine::Nodes() const {
  std::vector<Client::NodeStatus> nodes;
  for (const auto& [key, session] : sessions_) {
    Client::NodeStatus node;
    node.node_id = session->node_id();
    node.endpoint = session->endpoint();
    node.connected = session->open();
    node.breaker_open = session->breaker().open();
    node.last_error = session->last_error();
    for (const auto& lane : session->lanes()) {
      if (lane->endpoint == nullptr) continue;
      std::string text = fmt::format("{}: {}", lane->endpoint->Describe(), lane->reason);
      for (const std::string& missing : ways_missing_) text += "; " + missing;
      node.transports.push_back(std::move(text));
    }
    nodes.push_back(std::move(node));
  }
  return nodes;
}

}  // namespace tiercel
