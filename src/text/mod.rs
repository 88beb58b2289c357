//! Text and tokens: GGUF vocabularies, chat templates, output parsing, incremental detokenizing, stop strings.
//! Pure: no I/O, no clock (the template's `strftime_now` takes the time as an argument).
