// CurveChart is curves over cache sizes, drawn as text or as a picture: a hit ratio, 0 to 1, for
// each size. Sizes stand on a logarithmic axis.
//
// Invariants: equal charts give equal text and, with one libpng, equal bytes.
//
// Ownership: values only. Threads: any. Errors: named at each call.
#ifndef TIERCEL_CACHESERVER_CURVE_CHART_H_
#define TIERCEL_CACHESERVER_CURVE_CHART_H_

#include <string>
#include <vector>

#include "base/result.h"

namespace tiercel {

struct CurveChart {
  struct Curve {
    std::string name;
    std::vector<double> ratios;  // One a size.
  };
  std::string title;
  std::string x_label;
  std::vector<double> sizes;  // More than 0, rising; at least one.
  std::vector<Curve> curves;  // At most kMaxCurves.

  static constexpr size_t kMaxCurves = 12;
};

// A plot of characters, one letter a curve, with its legend; ends with a line feed.
std::string DrawText(const CurveChart& chart);
// 960 x 640 pixels. Errors: kUnavailable names the file and what is wrong.
Status WritePng(const CurveChart& chart, const std::string& path);

}  // namespace tiercel

#endif  // TIERCEL_CACHESERVER_CURVE_CHART_H_
