// The version of this build. In a file of its own, so that a second build differs in nothing else.
#ifndef TIERCEL_CACHESERVER_VERSION_H_
#define TIERCEL_CACHESERVER_VERSION_H_

namespace tiercel {

extern const char kVersion[];

}  // namespace tiercel

#endif  // TIERCEL_CACHESERVER_VERSION_H_
