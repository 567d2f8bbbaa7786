// Lines of samples.jsonl.
#include "csrc/train/samples.h"

#include <gtest/gtest.h>

#include <cmath>

namespace isentrope::train {
namespace ISENTROPE_UNIT {

TEST(SamplesToJson, ALineAsDocumented) {
  EXPECT_EQ(to_json("grpo", 20, "validation", {{"a+5b+6=", {"b", "\""}, {0.691234, 1}, true}, {"", {"x"}, {0}, {}}}),
            R"({"phase":"grpo","step":20,"eval/split":"validation","samples":[)"
            R"({"prompt":"a+5b+6=","tokens":["b","\""],"entropy":[0.6912,1.0],"right":true},)"
            R"({"prompt":"","tokens":["x"],"entropy":[0.0]}]})");
}

TEST(SamplesToJson, BytesThatAreNotTextAndNumbersThatAreNone) {
  EXPECT_EQ(
      to_json("p", 1, "test", {{"\xff", {"\xc3", "\xa9", "\n"}, {NAN, INFINITY, 2}, false}}),
      "{\"phase\":\"p\",\"step\":1,\"eval/split\":\"test\",\"samples\":[{\"prompt\":\"\xef\xbf\xbd\",\"tokens\":[\"\xef"
      "\xbf\xbd\",\"\xef\xbf\xbd\",\"\\n\"],\"entropy\":[null,null,2.0],\"right\":false}]}");
}

}  // namespace ISENTROPE_UNIT
}  // namespace isentrope::train
