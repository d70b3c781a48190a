from genseg.cli import main

main()
