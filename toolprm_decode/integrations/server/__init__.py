"""An OpenAI-compatible server over one Decoder: `toolprm serve`."""
