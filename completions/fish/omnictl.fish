# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_omnictl_global_optspecs
    string join \n socket= json color= h/help V/version
end

function __fish_omnictl_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_omnictl_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_omnictl_using_subcommand
    set -l cmd (__fish_omnictl_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c omnictl -n "__fish_omnictl_needs_command" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_needs_command" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_needs_command" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_needs_command" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_needs_command" -s V -l version -d 'Print version'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "status" -d 'Show the daemon and every model it knows'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "ps" -d 'Show the models that have a process: memory, speed, requests'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "load" -d 'Load a model by id, or a GGUF file, and wait until it is ready'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "unload" -d 'Unload a model; waits for its running streams'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "chat" -d 'Talk with a model, or answer one prompt'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "complete" -d 'Continue a text'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "health" -d 'Tell by the exit status whether the daemon is well'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "logs" -d 'Show log lines of the daemon or of a model'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "events" -d 'Show what happens in the daemon as it happens'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "reload" -d 'Make the daemon read its configuration again'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "vault" -d 'Show the weights that stay in memory for the next worker; compare their checksums, let them go'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "demo" -d 'Start a daemon with the bundled model, stream a story, stop it'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "inspect" -d 'Show what a GGUF file or address holds and whether it runs here, reading its header only'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "plan" -d 'Show where every layer and expert of a model would go on a host, its bytes, and how fast that should be'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "tokenize" -d 'Turn standard input into token ids, with a GGUF file\'s vocabulary'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "detokenize" -d 'Turn token ids into text, with a GGUF file\'s vocabulary'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "render" -d 'Render a chat request on standard input with a chat template'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "parse-chat" -d 'Take a model\'s raw answer on standard input apart: content, reasoning, tool calls'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "logits" -d 'Write the logits of a token sequence as a NumPy file'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "selftest" -d 'Compare a model\'s ways to the same logits with each other and with slow reference code; exit status 1 when some differ'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "bench" -d 'Measure speed: of a file, of a known shape, or all goals against the limits of this host'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "doctor" -d 'Examine the host and the configuration: what was found, why it matters, what to do'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "tune" -d 'Show which settings of the host should change and why; change them, take them back'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "completions" -d 'Print a completion script for a shell'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "man" -d 'Write the man pages'
complete -c omnictl -n "__fish_omnictl_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c omnictl -n "__fish_omnictl_using_subcommand status" -l experts -d 'Show how often each expert of a model was chosen, layer by layer; without MODEL of all loaded ones' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand status" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand status" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand status" -l topology -d 'Draw the host instead: sockets, NUMA nodes, caches, cores and limits; asks no daemon'
complete -c omnictl -n "__fish_omnictl_using_subcommand status" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand status" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand ps" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand ps" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand ps" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand ps" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand load" -l id -d 'FILE: id under which clients name it [default: from the file\'s name]' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand load" -l ctx -d 'FILE: context in tokens' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand load" -l parallel -d 'FILE: sequences at once' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand load" -l threads -d 'FILE: compute threads' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand load" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand load" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand load" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand load" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand unload" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand unload" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand unload" -l force -d 'Cut running streams instead of waiting for them'
complete -c omnictl -n "__fish_omnictl_using_subcommand unload" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand unload" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand chat" -l system -d 'How the model should behave' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand chat" -l temperature -d 'Randomness; 0 always takes the likeliest token' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand chat" -l top-p -d 'Draw from the likeliest tokens that make up this share' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand chat" -l top-k -d 'Draw from the K likeliest tokens' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand chat" -l min-p -d 'Leave out tokens less likely than this share of the likeliest' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand chat" -l seed -d 'Same seed, same text' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand chat" -l max-tokens -d 'End at most after so many tokens' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand chat" -l stop -d 'End before this text; may be given several times' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand chat" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand chat" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand chat" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand chat" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand complete" -l temperature -d 'Randomness; 0 always takes the likeliest token' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand complete" -l top-p -d 'Draw from the likeliest tokens that make up this share' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand complete" -l top-k -d 'Draw from the K likeliest tokens' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand complete" -l min-p -d 'Leave out tokens less likely than this share of the likeliest' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand complete" -l seed -d 'Same seed, same text' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand complete" -l max-tokens -d 'End at most after so many tokens' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand complete" -l stop -d 'End before this text; may be given several times' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand complete" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand complete" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand complete" -l echo -d 'Print the prompt before its continuation'
complete -c omnictl -n "__fish_omnictl_using_subcommand complete" -l no-stream -d 'Wait for the whole text instead of printing it as it comes'
complete -c omnictl -n "__fish_omnictl_using_subcommand complete" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand complete" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand health" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand health" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand health" -l ready -d 'Also require that requests are taken now (not starting or draining)'
complete -c omnictl -n "__fish_omnictl_using_subcommand health" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand health" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand logs" -s n -l lines -d 'Show the last N lines' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand logs" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand logs" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand logs" -s f -l follow -d 'Keep showing lines as they come'
complete -c omnictl -n "__fish_omnictl_using_subcommand logs" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand logs" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand events" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand events" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand events" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand events" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand reload" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand reload" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand reload" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand reload" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and not __fish_seen_subcommand_from list verify evict help" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and not __fish_seen_subcommand_from list verify evict help" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and not __fish_seen_subcommand_from list verify evict help" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and not __fish_seen_subcommand_from list verify evict help" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and not __fish_seen_subcommand_from list verify evict help" -f -a "list" -d 'Show what is kept, which models use it, and since when nobody does'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and not __fish_seen_subcommand_from list verify evict help" -f -a "verify" -d 'Compare checksums; damaged weights are let go and read from their file again (exit status 1)'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and not __fish_seen_subcommand_from list verify evict help" -f -a "evict" -d 'Let one go, or all that no model uses; a model that uses it keeps the memory until it is unloaded'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and not __fish_seen_subcommand_from list verify evict help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from list" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from list" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from list" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from list" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from verify" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from verify" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from verify" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from verify" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from evict" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from evict" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from evict" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from evict" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from help" -f -a "list" -d 'Show what is kept, which models use it, and since when nobody does'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from help" -f -a "verify" -d 'Compare checksums; damaged weights are let go and read from their file again (exit status 1)'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from help" -f -a "evict" -d 'Let one go, or all that no model uses; a model that uses it keeps the memory until it is unloaded'
complete -c omnictl -n "__fish_omnictl_using_subcommand vault; and __fish_seen_subcommand_from help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c omnictl -n "__fish_omnictl_using_subcommand demo" -l model -d 'GGUF file to serve [default: the bundled story model]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand demo" -l max-tokens -d 'Tokens to write at most' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand demo" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand demo" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand demo" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand demo" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand inspect" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand inspect" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand inspect" -l json -d 'Print JSON instead of tables'
complete -c omnictl -n "__fish_omnictl_using_subcommand inspect" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -l host -d 'Plan for the host that this TOML file describes [default: this host, its CPU measured]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -l shape -d 'Plan a model of this known shape, before the MODELs; may be given again' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -l quant -d 'Types of the weights of --shape, as omnictl bench --help lists them; one for all shapes, or one for each' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -s c -l context -d 'Tokens per sequence [default: what the model was trained for, at most 8192 and what fits]' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -l parallel -d 'Sequences at once [default: 4]' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -l kv -d 'Element type of the KV cache: f16, bf16, q8_0, q4_1, q4_0 or f32 [default: f16]' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -l ubatch -l ub -d 'Most prompt tokens per step [default: 512, or fewer where that makes more fit]' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -l device-limit -d 'Most memory of a device, e.g. gpu0=20GiB or cpu=64GiB; may be given again' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -l place -d 'Place by hand what matches a regular expression over names of tensors, as [[model.place]] does; may be given again' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -l config -d 'Where models are configured [default: the system\'s configuration]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -l gpu-only -d 'Refuse what does not fit on GPUs: the CPU computes nothing'
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand plan" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand tokenize" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand tokenize" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand tokenize" -l special -d 'Turn the literals of control tokens in the text into those tokens'
complete -c omnictl -n "__fish_omnictl_using_subcommand tokenize" -l add-special -d 'Add the tokens that the file wants around a text (BOS, EOS)'
complete -c omnictl -n "__fish_omnictl_using_subcommand tokenize" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand tokenize" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand detokenize" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand detokenize" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand detokenize" -l skip-special -d 'Leave control tokens out'
complete -c omnictl -n "__fish_omnictl_using_subcommand detokenize" -l json -d 'Print JSON instead of the text'
complete -c omnictl -n "__fish_omnictl_using_subcommand detokenize" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand render" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand render" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand render" -l json -d 'Print JSON instead of the prompt'
complete -c omnictl -n "__fish_omnictl_using_subcommand render" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand parse-chat" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand parse-chat" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand parse-chat" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand parse-chat" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand logits" -l tokens -d 'Token ids, separated by commas' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand logits" -s o -l output -d 'NumPy file to write' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand logits" -s t -l threads -d 'Compute threads; by default one per physical core' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand logits" -l cpus -d 'CPUs to run on, as in `taskset -c`' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand logits" -l isa -d 'Best instruction set to use: scalar, avx2, avx512, avx512vnni, avx512bf16; by default the host\'s best' -r -f -a "scalar\t''
avx2\t''
avx512\t''
avx512vnni\t''
avx512bf16\t''"
complete -c omnictl -n "__fish_omnictl_using_subcommand logits" -l kv -d 'Element type of the KV cache: f16, bf16, q8_0, q4_1, q4_0 or f32' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand logits" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand logits" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand logits" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand logits" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand selftest" -l long -d 'Tokens of the long prompt [default: 640, or 96 beyond the model\'s window, at most 4608]' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand selftest" -s t -l threads -d 'Compute threads; by default one per physical core' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand selftest" -l cpus -d 'CPUs to run on, as in `taskset -c`' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand selftest" -l isa -d 'Best instruction set to use: scalar, avx2, avx512, avx512vnni, avx512bf16; by default the host\'s best' -r -f -a "scalar\t''
avx2\t''
avx512\t''
avx512vnni\t''
avx512bf16\t''"
complete -c omnictl -n "__fish_omnictl_using_subcommand selftest" -l kv -d 'Element type of the KV cache: f16, bf16, q8_0, q4_1, q4_0 or f32' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand selftest" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand selftest" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand selftest" -l all -d 'Also compare with the reference where that takes many minutes'
complete -c omnictl -n "__fish_omnictl_using_subcommand selftest" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand selftest" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -s m -l model -d 'The same, as llama-bench names it' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l shape -d 'Measure a model of this true shape with random weights, with fewer layers if given: qwen2.5-0.5b, -1.5b, -7b or -32b, llama-3.1-8b, qwen3-0.6b, qwen3-4b and others' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l quant -d 'Types of the weights of --shape: q4_k_m, q5_k_m, q4_k_s, q5_k_s, q3_k_s, q6_k, q8_0, q4_0, q4_1, q5_0, q5_1, f16, bf16, mxfp4' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -s p -l prompt -d 'Lengths of prompts to measure; 0 for none' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -s n -l generate -d 'Numbers of generated tokens to measure; 0 for none' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -s d -l depth -d 'Depths of context to measure at' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -s b -l batch -d 'Numbers of sequences at once' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -s t -l threads -d 'Numbers of compute threads; by default one per physical core, --probe also fewer' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -s r -l repetitions -d 'Rounds; each measures everything once, in turns' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l ubatch -l ub -d 'Tokens per step of a prompt' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l cpus -d 'CPUs to run on, as in `taskset -c`' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l isa -d 'Best instruction set to use: scalar, avx2, avx512, avx512vnni, avx512bf16; by default the host\'s best' -r -f -a "scalar\t''
avx2\t''
avx512\t''
avx512vnni\t''
avx512bf16\t''"
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l kv -d 'Element type of the KV cache: f16, bf16, q8_0, q4_1, q4_0 or f32' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l peer -d 'Measure llama.cpp in turns on the same file, by a Python with llama-cpp-python [default: python3], else llama-bench' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l peer-bin -d 'Measure llama.cpp in turns on the same file, by this llama-bench' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l write -d 'Write the model of --shape to a file instead of measuring it' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l plot -d 'Draw tokens per second against depth and threads as SVG' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l temp-dir -d 'Where temporary files go [default: the system\'s place for them]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l text -d 'Text for --perplexity' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l ctx -d 'Context for --perplexity' -r
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l goals -d 'Measure every goal with its limit, ratio and verdict; so does a command line that names no model'
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l quick -d 'Goals on the smallest shape only, in a minute or two'
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l probe -d 'Measure what this host can do at most: memory, int8 arithmetic, disk (that of the file, or of --temp-dir)'
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l profile -d 'Tell per operation and type of weights what a step takes, and its GB/s and GOP/s'
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l load -d 'Load the file and tell how long it took and how much memory'
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l csv -d 'Print CSV'
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l perplexity -d 'Compute the perplexity of --text instead'
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand bench" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand doctor" -l config -d 'Configuration to go by [default: /etc/omni-inferd/config.toml if it is there]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand doctor" -l root -d 'Look at the files below this directory instead of the host\'s own' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand doctor" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand doctor" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand doctor" -l strict -d 'Let warnings count as failures'
complete -c omnictl -n "__fish_omnictl_using_subcommand doctor" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand doctor" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand tune" -l huge-pages -d 'Huge pages to reserve for the weights of the configured models' -r -f -a "none\t'Reserve none: weights take transparent ones'
2M\t'2 MiB, reserved while the host runs'
1G\t'1 GiB by the kernel\'s command line, and 2 MiB for the rest'"
complete -c omnictl -n "__fish_omnictl_using_subcommand tune" -l config -d 'Configuration to go by [default: /etc/omni-inferd/config.toml if it is there]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand tune" -l root -d 'Work on the files below this directory instead of the host\'s own' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand tune" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand tune" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand tune" -l apply -d 'Make the changes, now and for the next boot'
complete -c omnictl -n "__fish_omnictl_using_subcommand tune" -l rollback -d 'Take back what was changed'
complete -c omnictl -n "__fish_omnictl_using_subcommand tune" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand tune" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand completions" -l program -d 'Program to complete' -r -f -a "omnictl\t''
omni-inferd\t''
omni-proxy\t''"
complete -c omnictl -n "__fish_omnictl_using_subcommand completions" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand completions" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand completions" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand completions" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand man" -l socket -d 'The daemon\'s Unix socket [default: $OMNI_SOCKET, else the user\'s, else the system\'s]' -r -F
complete -c omnictl -n "__fish_omnictl_using_subcommand man" -l color -d 'When to use colours' -r -f -a "auto\t'On a terminal, unless `NO_COLOR` is set'
always\t'Always'
never\t'Never'"
complete -c omnictl -n "__fish_omnictl_using_subcommand man" -l json -d 'Results as JSON'
complete -c omnictl -n "__fish_omnictl_using_subcommand man" -s h -l help -d 'Print help (see more with \'--help\')'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "status" -d 'Show the daemon and every model it knows'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "ps" -d 'Show the models that have a process: memory, speed, requests'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "load" -d 'Load a model by id, or a GGUF file, and wait until it is ready'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "unload" -d 'Unload a model; waits for its running streams'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "chat" -d 'Talk with a model, or answer one prompt'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "complete" -d 'Continue a text'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "health" -d 'Tell by the exit status whether the daemon is well'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "logs" -d 'Show log lines of the daemon or of a model'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "events" -d 'Show what happens in the daemon as it happens'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "reload" -d 'Make the daemon read its configuration again'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "vault" -d 'Show the weights that stay in memory for the next worker; compare their checksums, let them go'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "demo" -d 'Start a daemon with the bundled model, stream a story, stop it'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "inspect" -d 'Show what a GGUF file or address holds and whether it runs here, reading its header only'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "plan" -d 'Show where every layer and expert of a model would go on a host, its bytes, and how fast that should be'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "tokenize" -d 'Turn standard input into token ids, with a GGUF file\'s vocabulary'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "detokenize" -d 'Turn token ids into text, with a GGUF file\'s vocabulary'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "render" -d 'Render a chat request on standard input with a chat template'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "parse-chat" -d 'Take a model\'s raw answer on standard input apart: content, reasoning, tool calls'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "logits" -d 'Write the logits of a token sequence as a NumPy file'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "selftest" -d 'Compare a model\'s ways to the same logits with each other and with slow reference code; exit status 1 when some differ'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "bench" -d 'Measure speed: of a file, of a known shape, or all goals against the limits of this host'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "doctor" -d 'Examine the host and the configuration: what was found, why it matters, what to do'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "tune" -d 'Show which settings of the host should change and why; change them, take them back'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "completions" -d 'Print a completion script for a shell'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "man" -d 'Write the man pages'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and not __fish_seen_subcommand_from status ps load unload chat complete health logs events reload vault demo inspect plan tokenize detokenize render parse-chat logits selftest bench doctor tune completions man help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and __fish_seen_subcommand_from vault" -f -a "list" -d 'Show what is kept, which models use it, and since when nobody does'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and __fish_seen_subcommand_from vault" -f -a "verify" -d 'Compare checksums; damaged weights are let go and read from their file again (exit status 1)'
complete -c omnictl -n "__fish_omnictl_using_subcommand help; and __fish_seen_subcommand_from vault" -f -a "evict" -d 'Let one go, or all that no model uses; a model that uses it keeps the memory until it is unloaded'
