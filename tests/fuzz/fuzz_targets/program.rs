#![no_main]
libfuzzer_sys::fuzz_target!(|input: &[u8]| testudo_tests::fuzz::program(input));
