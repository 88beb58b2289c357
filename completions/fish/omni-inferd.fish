# Print an optspec for argparse to handle cmd's options that are independent of any subcommand.
function __fish_omni_inferd_global_optspecs
    string join \n config= check worker-program= h/help V/version
end

function __fish_omni_inferd_needs_command
    # Figure out if the current invocation already has a command.
    set -l cmd (commandline -opc)
    set -e cmd[1]
    argparse -s (__fish_omni_inferd_global_optspecs) -- $cmd 2>/dev/null
    or return
    if set -q argv[1]
        # Also print the command, so this can be used to figure out what it is.
        echo $argv[1]
        return 1
    end
    return 0
end

function __fish_omni_inferd_using_subcommand
    set -l cmd (__fish_omni_inferd_needs_command)
    test -z "$cmd"
    and return 1
    contains -- $cmd[1] $argv
end

complete -c omni-inferd -n "__fish_omni_inferd_needs_command" -l config -d 'Configuration file; without it /etc/omni-inferd/config.toml if that is there, else the defaults' -r -F
complete -c omni-inferd -n "__fish_omni_inferd_needs_command" -l worker-program -d 'Program to start as worker instead of this one, for debugging; called as PROGRAM worker --log FILTER ID' -r -F
complete -c omni-inferd -n "__fish_omni_inferd_needs_command" -l check -d 'Only check the configuration: print "ok" and a summary, or everything that is wrong (exit code 78)'
complete -c omni-inferd -n "__fish_omni_inferd_needs_command" -s h -l help -d 'Print help'
complete -c omni-inferd -n "__fish_omni_inferd_needs_command" -s V -l version -d 'Print version'
complete -c omni-inferd -n "__fish_omni_inferd_needs_command" -f -a "serve" -d 'Serve one GGUF file without any configuration'
complete -c omni-inferd -n "__fish_omni_inferd_needs_command" -f -a "worker" -d 'One model\'s process; started by the daemon'
complete -c omni-inferd -n "__fish_omni_inferd_needs_command" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand serve" -l socket -d 'Unix socket to listen on [default: in the runtime directory]' -r -F
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand serve" -l ctx -d 'Tokens of context per sequence [default: as trained, at most 8192]' -r
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand serve" -l parallel -d 'Sequences that run at once' -r
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand serve" -l threads -d 'Compute threads [default: one per physical core]' -r
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand serve" -l cpus -d 'CPUs to run on, as for taskset -c [default: all allowed]' -r
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand serve" -l id -d 'Name that clients use [default: the file\'s name]' -r
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand serve" -l kv-type -d 'Element type of the KV cache: f16, or for less memory q8_0, q4_1 or q4_0' -r -f -a "f16\t''
bf16\t''
q8_0\t''
q4_1\t''
q4_0\t''
f32\t''"
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand serve" -l chat-template -d 'Jinja file that replaces the chat template of the GGUF file' -r -F
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand serve" -l log -d 'Log filter: error, warn, info, debug, trace' -r
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand serve" -l worker-program -d 'Program to start as worker instead of this one, for debugging; called as PROGRAM worker --log FILTER ID' -r -F
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand serve" -s h -l help -d 'Print help'
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand worker" -l log -d 'Log filter' -r
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand worker" -l worker-program -d 'Program to start as worker instead of this one, for debugging; called as PROGRAM worker --log FILTER ID' -r -F
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand worker" -s h -l help -d 'Print help'
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand help; and not __fish_seen_subcommand_from serve worker help" -f -a "serve" -d 'Serve one GGUF file without any configuration'
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand help; and not __fish_seen_subcommand_from serve worker help" -f -a "worker" -d 'One model\'s process; started by the daemon'
complete -c omni-inferd -n "__fish_omni_inferd_using_subcommand help; and not __fish_seen_subcommand_from serve worker help" -f -a "help" -d 'Print this message or the help of the given subcommand(s)'
