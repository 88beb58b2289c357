complete -c omni-proxy -l socket -d 'The daemon\'s Unix socket' -r -F
complete -c omni-proxy -l listen -d 'Address to listen on; may be given several times [default: 127.0.0.1:8080]' -r
complete -c omni-proxy -l keys -d 'File of hashed API keys; without one no key is asked for' -r -F
complete -c omni-proxy -l allow -d 'Network clients may come from; may be given several times [default: any]' -r
complete -c omni-proxy -l config -d 'Settings: the [proxy] table of this TOML file; options above win over it' -r -F
complete -c omni-proxy -l log -d 'What to log: error, warn, info, debug, trace, or a filter' -r
complete -c omni-proxy -l hash-key -d 'Print the key file\'s line for NAME: of the key on standard input, or of a new key, which is shown once' -r
complete -c omni-proxy -l check -d 'Check settings and keys, then exit'
complete -c omni-proxy -s h -l help -d 'Print help'
complete -c omni-proxy -s V -l version -d 'Print version'
