"""What trains inside a frozen network, one PEFT module a file."""
