#include "csrc/data/jsonl_line.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>
#include <set>
#include <stdexcept>
#include <vector>

#include "csrc/data/messages.h"
#include "csrc/message.h"

namespace isentrope::data {
namespace {

using Json = nlohmann::json;

std::optional<std::string> text_at(const Json& object, const std::string& key, bool integers,
                                   const std::string& where) {
  const auto value = object.find(key);
  if (value == object.end() || value->is_null()) return std::nullopt;
  if (value->is_string()) return value->get<std::string>();
  if (integers && value->is_number_integer()) return value->dump();
  throw std::runtime_error(where + ": \"" + excerpt(key) + "\" is a JSON " + value->type_name() +
                           "; it must be a string" + (integers ? " or an integer" : ""));
}

// What a reward function is told of a completion beside the columns of its example (docs/rewards.md).
constexpr std::array kOfRewards{"split", "finished"};
// Readers of JSON in C++ and Python go down by calling themselves.
constexpr int kDeepestJson = 100;

// The JSON of a line. A key that an object holds twice is refused: which of the two is meant nobody knows.
Json parsed(const std::string& line, const std::string& where) {
  std::vector<std::string> keys;  // of the outermost object
  const auto look = [&](int depth, Json::parse_event_t event, Json& value) {
    if (depth > kDeepestJson)
      throw std::runtime_error(where + ": holds lists or objects more than " + std::to_string(kDeepestJson) +
                               " within one another");
    if (depth == 1 && event == Json::parse_event_t::key) {
      const auto& key = value.get_ref<const std::string&>();
      if (std::find(keys.begin(), keys.end(), key) != keys.end())
        throw std::runtime_error(where + ": the key \"" + excerpt(key) + "\" is written twice");
      keys.push_back(key);
    }
    return true;
  };
  try {
    return Json::parse(line, look);
  } catch (const Json::parse_error& error) {
    const std::string what = error.what();  // "[json.exception.parse_error.101] parse error at line 1, column 9: …"
    const size_t column = what.find("column");
    throw std::runtime_error(where + ": not JSON at " +
                             excerpt(column == std::string::npos ? what : what.substr(column), 300));
  } catch (const Json::out_of_range&) {  // the only one of parse: 1e999
    throw std::runtime_error(where + ": holds a number beyond ±1.8e308");
  }
}

Json object_of(const std::string& line, const std::string& where) {
  Json object = parsed(line, where);
  if (!object.is_object())
    throw std::runtime_error(where + ": a JSON " + std::string(object.type_name()) +
                             "; each line must hold one object");
  return object;
}

std::string prompt_of(const Json& object, const std::string& key, const std::string& where) {
  const auto prompt = text_at(object, key, false, where);
  if (!prompt) throw std::runtime_error(where + ": the key \"" + excerpt(key) + "\" is missing");
  if (prompt->empty()) throw std::runtime_error(where + ": \"" + excerpt(key) + "\" is empty");
  return *prompt;
}

std::vector<Message> messages_of(const Json& list, const std::string& key, const std::string& where) {
  static const std::set<std::string> kRoles{"system", "user", "assistant", "tool"};
  const std::string name = where + ": \"" + excerpt(key) + "\"";
  if (!list.is_array() || list.empty())
    throw std::runtime_error(name + " is " + (list.is_array() ? "empty" : std::string("a JSON ") + list.type_name()) +
                             "; it must be a list of {\"role\": …, \"content\": …}");
  std::vector<Message> messages;
  for (const Json& one : list) {
    const std::string at = where + ": " + excerpt(key) + "[" + std::to_string(messages.size()) + "]";
    if (!one.is_object()) throw std::runtime_error(at + " is a JSON " + one.type_name() + "; it must be an object");
    const auto role = text_at(one, "role", false, at), content = text_at(one, "content", false, at);
    if (!role || !kRoles.contains(*role))
      throw std::runtime_error(at + ".role is " + (role ? isentrope::quoted(*role) : "missing") +
                               "; it must be system, user, assistant or tool");
    if (const auto calls = one.find("tool_calls"); calls != one.end() && !calls->is_null())
      throw std::runtime_error(at + " has tool_calls, which no rendering here shows; write them into its content");
    if (!content || (*role == "assistant" && content->empty()))
      throw std::runtime_error(at + ".content is " + (content ? "empty, and an assistant's is learnt" : "missing"));
    messages.push_back({*role, *content});
  }
  return messages;
}

// The messages of a list as a template takes them: objects with a role, and whatever else it reads.
void require_messages(const Json& list, const std::string& key, const std::string& where) {
  const std::string name = where + ": \"" + excerpt(key) + "\"";
  if (!list.is_array() || list.empty())
    throw std::runtime_error(name + " is " + (list.is_array() ? "empty" : std::string("a JSON ") + list.type_name()) +
                             "; it must be a list of {\"role\": …, \"content\": …}");
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string at = where + ": " + excerpt(key) + "[" + std::to_string(i) + "]";
    if (!list[i].is_object())
      throw std::runtime_error(at + " is a JSON " + list[i].type_name() + "; it must be an object");
    if (!text_at(list[i], "role", false, at)) throw std::runtime_error(at + ".role is missing; it must be a string");
  }
}

// What a template is given of an object: its messages, and the keys that transformers and TRL hand on beside them.
Conversation conversation_of(const Json& object, const Json& messages, size_t learnt_from) {
  Json given{{"messages", messages}};
  for (const char* key : {"tools", "chat_template_kwargs"})
    if (const auto found = object.find(key); found != object.end() && !found->is_null()) given[key] = *found;
  if (learnt_from > 0) given["learnt_from"] = learnt_from;
  return given.dump();
}

// A conversation to be rendered by a template: under messages, or as prompt and completion that are both lists of messages, of which
// the completion's are learnt. Until it is rendered, the example holds its prompt, by which it is split, as JSON.
std::optional<Example> templated_of(const JsonlConfig& config, const Json& object, Conversation& conversation,
                                    const std::string& where) {
  const auto list = object.find(config.messages_key), prompt = object.find(config.prompt_key);
  Json messages;
  size_t learnt_from = 0;
  if (list != object.end() && !list->is_null()) {
    require_messages(*list, config.messages_key, where);
    messages = *list;
  } else if (prompt != object.end() && prompt->is_array()) {
    require_messages(*prompt, config.prompt_key, where);
    messages = *prompt;
    learnt_from = messages.size();
    const auto completion = object.find(config.completion_key);
    if (completion != object.end() && !completion->is_null()) {
      require_messages(*completion, config.completion_key, where);
      messages.insert(messages.end(), completion->begin(), completion->end());
    }
  } else {
    return std::nullopt;
  }
  conversation = conversation_of(object, messages, learnt_from);
  Example example;
  const bool answered = messages.size() > learnt_from && messages.back()["role"] == "assistant";
  if (answered) {
    const Json content = messages.back().value("content", Json());
    if (content == Json("") && !messages.back().contains("tool_calls"))
      throw std::runtime_error(where + ": the content of the last message is empty, and an assistant's is learnt");
    example.completion = content.dump();
    messages.erase(messages.size() - 1);
  }
  example.prompt = messages.dump();
  return example;
}

// Prompt and completion, or what a conversation has in their place.
Example text_of(const JsonlConfig& config, const Json& object, Conversation* conversation, const std::string& where) {
  const auto list = object.find(config.messages_key);
  const bool has_messages = list != object.end() && !list->is_null();
  if (!has_messages) {
    if (conversation)
      if (auto example = templated_of(config, object, *conversation, where)) return *std::move(example);
    if (const auto prompts = object.find(config.prompt_key); prompts != object.end() && prompts->is_array())
      throw std::runtime_error(where + ": \"" + excerpt(config.prompt_key) +
                               "\" is a list of messages, which takes a chat template, and there is none here; write "
                               "them under \"" +
                               excerpt(config.messages_key) + "\", or name a template (data.jsonl.chat_template)");
    const std::string prompt = prompt_of(object, config.prompt_key, where);
    return {prompt, text_at(object, config.completion_key, false, where).value_or(""), ""};
  }
  for (const std::string& other : {config.prompt_key, config.completion_key})
    if (object.contains(other))
      throw std::runtime_error(where + ": \"" + excerpt(other) + "\" stands beside \"" + excerpt(config.messages_key) +
                               "\"; leave one of the two out");
  if (conversation) return *templated_of(config, object, *conversation, where);
  return render(messages_of(*list, config.messages_key, where));
}

bool has(const Json& object, const std::string& key) { return object.contains(key) && !object[key].is_null(); }

// Whether the line is a pair: it has a rejected completion beside a chosen one, in the place of a completion.
bool is_pair(const JsonlConfig& config, const Json& object, const std::string& where) {
  if (!has(object, config.chosen_key) || !has(object, config.rejected_key)) return false;
  if (config.chosen_key != config.completion_key && has(object, config.completion_key)) return false;
  const Json &chosen = object[config.chosen_key], &rejected = object[config.rejected_key];
  if (chosen.is_array() != rejected.is_array())
    throw std::runtime_error(where + ": \"" + excerpt(config.chosen_key) + "\" is a JSON " + chosen.type_name() +
                             " and \"" + excerpt(config.rejected_key) + "\" a JSON " + rejected.type_name() +
                             "; both must be strings, or lists of messages");
  if (chosen == rejected)
    throw std::runtime_error(where + ": \"" + excerpt(config.chosen_key) + "\" and \"" + excerpt(config.rejected_key) +
                             "\" are the same, so that there is nothing to prefer (data.on_error: skip leaves such "
                             "lines out)");
  return true;
}

// The object with the completion that key names as its completion. Conversations that begin alike and have no prompt of their own part
// where they differ, as TRL's extract_prompt has it.
Json with_completion(const JsonlConfig& config, Json object, const std::string& key, const std::string& where) {
  Json one = object[key];
  if (one.is_array() && !has(object, config.prompt_key)) {
    const Json& other = object[key == config.chosen_key ? config.rejected_key : config.chosen_key];
    size_t same = 0;
    while (same < one.size() && same < other.size() && one[same] == other[same]) ++same;
    if (same == 0 || same == one.size() || same == other.size())
      throw std::runtime_error(
          where + ": \"" + excerpt(config.chosen_key) + "\" and \"" + excerpt(config.rejected_key) + "\" " +
          (same == 0 ? "begin with different messages" : "are one the beginning of the other") +
          "; they must share a prompt and then differ, or the line must have a \"" + excerpt(config.prompt_key) + "\"");
    Json prompt = Json::array();
    for (size_t i = 0; i < same; ++i) prompt.push_back(one[i]);
    one.erase(one.begin(), one.begin() + static_cast<std::ptrdiff_t>(same));
    object[config.prompt_key] = std::move(prompt);
  }
  object.erase(config.chosen_key);
  object.erase(config.rejected_key);
  object[config.completion_key] = std::move(one);
  return object;
}

// A prompt and the texts that match it.
Example matched_of(const JsonlConfig& config, const Json& object, const std::string& where) {
  Example example{.prompt = prompt_of(object, config.prompt_key, where)};
  const std::string name = where + ": \"" + excerpt(config.positives_key) + "\"";
  if (!has(object, config.positives_key))
    throw std::runtime_error(name +
                             " is missing; a contrastive phase learns from the list of texts that match a prompt");
  const Json& list = object[config.positives_key];
  if (!list.is_array() || list.empty())
    throw std::runtime_error(name + " is " + (list.is_array() ? "empty" : std::string("a JSON ") + list.type_name()) +
                             "; it must be a list of strings");
  for (size_t i = 0; i < list.size(); ++i) {
    const std::string at = excerpt(config.positives_key) + "[" + std::to_string(i) + "]";
    if (!list[i].is_string() || list[i] == "")
      throw std::runtime_error(where + ": " + at + " is " +
                               (list[i].is_string() ? "empty" : std::string("a JSON ") + list[i].type_name()) +
                               "; it must be a text");
    if (std::find(example.positives.begin(), example.positives.end(), list[i].get<std::string>()) !=
        example.positives.end())
      throw std::runtime_error(where + ": " + at + " stands in the list twice");
    example.positives.push_back(list[i].get<std::string>());
  }
  return example;
}

}  // namespace

Example example_of(const JsonlConfig& config, const std::string& line, bool columns, bool positives,
                   Conversations* conversations, const std::string& where) {
  Json object = object_of(line, where);
  if (positives) return matched_of(config, object, where);
  std::shared_ptr<Example> rejected;
  if (is_pair(config, object, where)) {
    rejected = std::make_shared<Example>(text_of(config, with_completion(config, object, config.rejected_key, where),
                                                 conversations ? &conversations->rejected : nullptr, where));
    object = with_completion(config, object, config.chosen_key, where);
  } else if (!has(object, config.completion_key) && !has(object, config.messages_key) &&
             has(object, config.chosen_key) && object[config.chosen_key].is_string()) {
    object[config.completion_key] = object[config.chosen_key];
  }
  Example example = text_of(config, object, conversations ? &conversations->own : nullptr, where);
  example.rejected = std::move(rejected);
  const auto answer = text_at(object, config.answer_key, true, where);
  const bool completion = object.contains(config.completion_key) && !object[config.completion_key].is_null();
  if (example.completion.empty() && !completion && !answer && object.contains(config.messages_key))
    throw std::runtime_error(where + ": the last of \"" + excerpt(config.messages_key) +
                             "\" is not an assistant's, and there is no \"" + excerpt(config.answer_key) + "\" either");
  if (example.completion.empty() && !completion && !answer)
    throw std::runtime_error(where + ": the key \"" + excerpt(config.completion_key) +
                             "\" is missing, and there is no \"" + excerpt(config.answer_key) + "\" either");
  for (const char* name : kOfRewards)
    if (columns && object.contains(name))
      throw std::runtime_error(where + ": the key \"" + name +
                               "\" has the name of what a reward function finds in meta " +
                               "beside the keys of an example (docs/rewards.md); rename it");
  example.answer = answer.value_or("");
  if (columns) example.columns = line;
  return example;
}

Prompt prompt_at(const std::string& line, bool messages, const std::string& where) {
  const Json object = object_of(line, where);
  const auto list = object.find("messages");
  if (!messages || list == object.end() || object.contains("prompt"))
    return {where, prompt_of(object, "prompt", where), line};
  require_messages(*list, "messages", where);
  return {where, "", line, conversation_of(object, *list, 0)};
}

}  // namespace isentrope::data
