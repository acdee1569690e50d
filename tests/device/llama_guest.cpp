// llama.cpp inside the emulator while instructions are counted: prefill and decode, each marked for count.c.
//
//     llama_guest MODEL.gguf NEW REPEATS ID…
//
// Runs the prompt and NEW further tokens greedily: once to warm up, then REPEATS times counted. Prints the new
// tokens. One thread; the defaults of llama.cpp otherwise.
#include "llama.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <unistd.h>
#include <vector>

static const int BEGIN = 77001, END = 77002;  // count.c knows them

static llama_token decode(llama_context * context, int size, std::vector<llama_token> tokens) {
    if (llama_decode(context, llama_batch_get_one(tokens.data(), tokens.size()))) {
        std::fprintf(stderr, "llama_decode failed\n");
        std::exit(1);
    }
    const float * logits = llama_get_logits_ith(context, -1);
    return std::max_element(logits, logits + size) - logits;
}

int main(int argc, char ** argv) {
    if (argc < 5) {
        std::fprintf(stderr, "llama_guest MODEL.gguf NEW REPEATS ID...\n");
        return 2;
    }
    llama_log_set([](ggml_log_level, const char *, void *) {}, nullptr);
    llama_model * model = llama_model_load_from_file(argv[1], llama_model_default_params());
    if (!model) {
        std::fprintf(stderr, "%s cannot be loaded\n", argv[1]);
        return 1;
    }
    const int wanted = std::atoi(argv[2]), repeats = std::atoi(argv[3]);
    std::vector<llama_token> prompt;
    for (int i = 4; i < argc; i++) {
        prompt.push_back(std::atoi(argv[i]));
    }
    llama_context_params params = llama_context_default_params();
    params.n_ctx = 1024;
    params.n_threads = params.n_threads_batch = 1;
    llama_context * context = llama_init_from_model(model, params);
    const int size = llama_vocab_n_tokens(llama_model_get_vocab(model));
    for (int repeat = 0; repeat <= repeats; repeat++) {
        llama_memory_clear(llama_get_memory(context), true);
        const bool counted = repeat > 0;
        if (counted) close(-BEGIN);
        llama_token token = decode(context, size, prompt);
        if (counted) close(-END);
        std::vector<llama_token> found = {token};
        if (counted) close(-BEGIN);
        for (int i = 1; i < wanted; i++) {
            found.push_back(decode(context, size, {found.back()}));
        }
        if (counted) close(-END);
        if (repeat == repeats) {
            for (llama_token one : found) std::printf("%d ", one);
            std::printf("\n");
        }
    }
    return 0;
}
