"""The command line: parse, call one function, print. Heavy imports wait inside the commands."""
