// A model's chat template, which Python renders: python/isentrope/chat_template.py in a process of its own, for many conversations at
// once.
#pragma once
#include <string>

#include "csrc/data/messages.h"
#include "csrc/data/source.h"
#include "csrc/data/tokenizer.h"

namespace isentrope::train {

// The renderer of what JsonlConfig::chat_template says; empty for plain lines. key: the key or option that asks for it, which errors
// name. The renderer throws std::runtime_error where there is no Python with the package or with jinja2, no such template, or one that
// is no Jinja; of each conversation that the template refuses it tells the problem with the template's file and line.
data::Renderer chat_template_of(const std::string& wanted, const data::Tokenizer& tokenizer, const std::string& key);

// What renders the conversations of a phase's data.
data::Renderer renderer_of(const data::DataConfig& data, const data::Tokenizer& tokenizer);

}  // namespace isentrope::train
