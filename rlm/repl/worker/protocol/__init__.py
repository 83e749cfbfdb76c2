"""What goes over a stream: kinds of frames, frames, messages, values of tools."""
